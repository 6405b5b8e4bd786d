"""Nodes for the tests and the demo only: text embeddings without the 11 GB text encoder, and failures on demand."""

import os
import pathlib
import time
import zlib

import comfy.model_management
import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import ComfyExtension, io

TOKENS = 512


class TestTextEmbedding(io.ComfyNode):
    """Random numbers in the shape of umt5's embedding, drawn from the text."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTextEmbedding",
            display_name="Test Text Embedding",
            category="tests",
            inputs=[
                io.String.Input("text", multiline=True),
                io.Int.Input("width", default=4096, min=1, max=1 << 16),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str, width: int) -> io.NodeOutput:
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(text.encode()))
        return io.NodeOutput([[torch.randn(1, TOKENS, width, generator=generator), {}]])


class TestTensorConditioning(io.ComfyNode):
    """Conditioning from a safetensors file in the input folder: `context` and, for I2V, `image` (a latent) and `mask`."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTensorConditioning",
            display_name="Test Tensor Conditioning",
            category="tests",
            inputs=[io.String.Input("file")],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        tensors = safetensors.torch.load_file(folder_paths.get_annotated_filepath(file))
        names = {"image": "concat_latent_image", "mask": "concat_mask"}
        options = {names[name]: tensors[name] for name in names if name in tensors}
        return io.NodeOutput([[tensors["context"].float(), options]])


class TestTrouble(io.ComfyNode):
    """Passes a latent on, or fails in one of the ways that a batch has to survive."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTrouble",
            display_name="Test Trouble",
            category="tests",
            inputs=[
                io.Latent.Input("samples"),
                io.Combo.Input("kind", options=["none", "error", "out of memory", "end the process", "wait"]),
                io.String.Input(
                    "once", default="", tooltip="A file that is made by the first run; later runs do nothing."
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples: dict, kind: str, once: str) -> io.NodeOutput:
        if once and pathlib.Path(once).exists():
            return io.NodeOutput(samples)
        if once:
            pathlib.Path(once).touch()
        if kind == "error":
            raise ValueError("This node always fails.")
        if kind == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if kind == "end the process":
            os._exit(9)
        for _ in range(6000 if kind == "wait" else 0):
            comfy.model_management.throw_exception_if_processing_interrupted()
            time.sleep(0.05)
        return io.NodeOutput(samples)


class TestNodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestTextEmbedding, TestTensorConditioning, TestTrouble]


async def comfy_entrypoint() -> TestNodes:
    return TestNodes()

"""Nodes for the tests and the demo only: text embeddings without the 11 GB text encoder."""

import zlib

import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import ComfyExtension, io, ui

from . import toy_text

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


class TestToyWorldText(io.ComfyNode):
    """The toy world's stand-in for umT5; what it made of the prompt is shown on the node."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestToyWorldText",
            display_name="Toy World Text (a stand-in, not umT5)",
            category="tests",
            inputs=[io.String.Input("text", multiline=True)],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        embedding, notes = toy_text.encode(text)
        return io.NodeOutput([[embedding, {}]], ui=ui.PreviewText("\n".join(notes)) if notes else None)


class TestNodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestTextEmbedding, TestTensorConditioning, TestToyWorldText]


async def comfy_entrypoint() -> TestNodes:
    return TestNodes()

"""Nodes for the tests and the demo only: text embeddings without the 11 GB text encoder, random latents, and faults."""

import itertools
import os
import pathlib
import time
import zlib

import comfy.model_management
import comfy.sd
import folder_paths
import safetensors.torch
import torch
from comfy_api.latest import ComfyExtension, io, ui
from server import PromptServer

from . import faults, process, slow_file, toy_text

TOKENS = 512
_PAUSE, _LONGEST, _LOOKS = 0.05, 6000, 20  # seconds between two looks, how many, and how many of them with an audience


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


class TestRandomLatent(io.ComfyNode):
    """A video latent of random numbers."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestRandomLatent",
            display_name="Test Random Latent",
            category="tests",
            inputs=[
                io.Int.Input(name, default=1, min=0, max=1 << 20)
                for name in ("channels", "length", "height", "width", "seed")
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, channels: int, length: int, height: int, width: int, seed: int) -> io.NodeOutput:
        generator = torch.Generator("cpu").manual_seed(seed)
        return io.NodeOutput({"samples": torch.randn(1, channels, length, height, width, generator=generator)})


class TestFailingVAE(io.ComfyNode):
    """A VAE whose decoder runs out of memory from its `at`-th chunk on, on latents with a side longer than `above`."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestFailingVAE",
            display_name="Test Failing VAE",
            category="tests",
            inputs=[
                io.String.Input("vae_name"),
                io.Int.Input("at", default=1, min=1, max=1 << 20),
                io.Int.Input("above", default=0, min=0, max=1 << 20),
            ],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae_name: str, at: int, above: int) -> io.NodeOutput:
        vae = comfy.sd.VAE(sd=safetensors.torch.load_file(folder_paths.get_full_path_or_raise("vae", vae_name)))
        chunks = itertools.count(1)

        def refuse(module, args) -> None:
            if next(chunks) >= at and max(args[0].shape[3:]) > above:
                raise torch.OutOfMemoryError("Allocation on device failed (made by a test node)")

        vae.first_stage_model.decoder.register_forward_pre_hook(refuse)
        return io.NodeOutput(vae)


class TestTrouble(io.ComfyNode):
    """Passes a latent on, or fails in one of the ways that a batch has to survive; or first waits: for an interrupt, for a file
    (gate), or for a client beside the one that queued the prompt, who has had a second to see it running (audience)."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestTrouble",
            display_name="Test Trouble",
            category="tests",
            inputs=[
                io.Latent.Input("samples"),
                io.Combo.Input(
                    "kind", options=["none", "error", "out of memory", "end the process", "wait", "gate", "audience"]
                ),
                io.String.Input(
                    "once",
                    default="",
                    tooltip="A file; where it exists, nothing happens. The first run makes it, a gate waits for it.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples: dict, kind: str, once: str) -> io.NodeOutput:
        if once and pathlib.Path(once).exists():
            return io.NodeOutput(samples)
        if once and kind != "gate":
            pathlib.Path(once).touch()
        if kind == "error":
            raise ValueError("This node always fails.")
        if kind == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if kind == "end the process":
            os._exit(9)
        server, listened = PromptServer.instance, 0
        for _ in range(_LONGEST if kind in ("wait", "gate", "audience") else 0):
            comfy.model_management.throw_exception_if_processing_interrupted()
            if kind == "gate" and pathlib.Path(once).exists():
                break
            listened += bool(server.sockets.keys() - {server.client_id})
            if kind == "audience" and listened > _LOOKS:
                break
            time.sleep(_PAUSE)
        return io.NodeOutput(samples)


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
        return [
            TestTrouble,
            TestToyWorldText,
            TestTextEmbedding,
            TestTensorConditioning,
            TestRandomLatent,
            TestFailingVAE,
            *faults.NODES,
            *process.NODES,
            *slow_file.NODES,
        ]


async def comfy_entrypoint() -> TestNodes:
    return TestNodes()

"""Nodes for the tests only: text embeddings without the 11 GB text encoder, random latents, and faults."""

import itertools
import pathlib
import time
import types
import zlib
from typing import ClassVar

import comfy.model_management
import comfy.sd
import folder_paths
import safetensors.torch
import torch
from comfy.text_encoders import z_image
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from . import faults
from .schema import TestNode

TOKENS = 512
_PAUSE, _LONGEST, _WITH_AUDIENCE = 0.05, 6000, 20  # seconds between two polls, most polls, polls with a second client


class TestTextEmbedding(TestNode):
    """A random embedding [1, 512, width], float32, whose seed is a hash of the text."""

    INPUTS = [
        io.String.Input("text", multiline=True),
        io.Int.Input("width", default=4096, min=1, max=1 << 16),
    ]
    OUTPUTS = [io.Conditioning.Output()]

    @classmethod
    def execute(cls, text: str, width: int) -> io.NodeOutput:
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(text.encode()))
        return io.NodeOutput([[torch.randn(1, TOKENS, width, generator=generator), {}]])


class TestLanguageModel(TestNode):
    """A CLIP that can generate: ComfyUI's Qwen 3 with random weights, 64 wide and of three layers."""

    OUTPUTS = [io.Clip.Output()]
    SIZES: ClassVar[dict] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }

    @classmethod
    def execute(cls) -> io.NodeOutput:
        target = types.SimpleNamespace(clip=z_image.te(), tokenizer=z_image.ZImageTokenizer, params={})
        clip = comfy.sd.CLIP(target, model_options={"qwen3_4b_model_config": cls.SIZES})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for value in clip.cond_stage_model.parameters():
                value.data.normal_()
        return io.NodeOutput(clip)


class TestTensorConditioning(TestNode):
    """Conditioning from a safetensors file in the input folder: `context` and, for I2V, `image` (a latent) and
    `mask`."""

    INPUTS = [io.String.Input("file")]
    OUTPUTS = [io.Conditioning.Output()]

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        tensors = safetensors.torch.load_file(folder_paths.get_annotated_filepath(file))
        names = {"image": "concat_latent_image", "mask": "concat_mask"}
        options = {names[name]: tensors[name] for name in names if name in tensors}
        return io.NodeOutput([[tensors["context"].float(), options]])


class TestRandomLatent(TestNode):
    """A random video latent [1, channels, length, height, width], float32."""

    INPUTS = [
        io.Int.Input(name, default=1, min=0, max=1 << 20) for name in ("channels", "length", "height", "width", "seed")
    ]
    OUTPUTS = [io.Latent.Output()]

    @classmethod
    def execute(cls, channels: int, length: int, height: int, width: int, seed: int) -> io.NodeOutput:
        generator = torch.Generator("cpu").manual_seed(seed)
        return io.NodeOutput({"samples": torch.randn(1, channels, length, height, width, generator=generator)})


class TestFailingVAE(TestNode):
    """A VAE whose decoder runs out of memory from chunk `at` on, for latents with a side longer than `above`."""

    INPUTS = [
        io.String.Input("vae_name"),
        io.Int.Input("at", default=1, min=1, max=1 << 20),
        io.Int.Input("above", default=0, min=0, max=1 << 20),
    ]
    OUTPUTS = [io.Vae.Output()]

    @classmethod
    def execute(cls, vae_name: str, at: int, above: int) -> io.NodeOutput:
        vae = comfy.sd.VAE(sd=safetensors.torch.load_file(folder_paths.get_full_path_or_raise("vae", vae_name)))
        chunks = itertools.count(1)

        def refuse(module, args) -> None:
            if next(chunks) >= at and max(args[0].shape[3:]) > above:
                raise torch.OutOfMemoryError("Allocation on device failed (made by a test node)")

        vae.first_stage_model.decoder.conv1.register_forward_pre_hook(refuse)
        return io.NodeOutput(vae)


class TestTrouble(TestNode):
    """Passes a latent on, fails in one of the ways that a batch has to survive, or waits before it passes the latent
    on.

    `wait` ends by an interrupt, `gate` once the file `once` exists, `audience` once a second client has been connected
    for a second, beside the one that queued the prompt.
    """

    INPUTS = [
        io.Latent.Input("samples"),
        io.Combo.Input("kind", options=["none", "error", "out of memory", "wait", "gate", "audience"]),
        io.String.Input(
            "once",
            default="",
            tooltip="A file. If it exists, the latent is passed on. The first run creates it; a gate waits for it.",
        ),
    ]
    OUTPUTS = [io.Latent.Output()]

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
        server, listened = PromptServer.instance, 0
        for _ in range(_LONGEST if kind in ("wait", "gate", "audience") else 0):
            comfy.model_management.throw_exception_if_processing_interrupted()
            if kind == "gate" and pathlib.Path(once).exists():
                break
            listened += bool(server.sockets.keys() - {server.client_id})
            if kind == "audience" and listened > _WITH_AUDIENCE:
                break
            time.sleep(_PAUSE)
        return io.NodeOutput(samples)


class TestFirstTokens(TestNode):
    """The first `count` tokens of a text, which keeps cross-attention fast on a CPU."""

    INPUTS = [io.Conditioning.Input("conditioning"), io.Int.Input("count", default=8, min=1)]
    OUTPUTS = [io.Conditioning.Output()]

    @classmethod
    def execute(cls, conditioning: list, count: int) -> io.NodeOutput:
        return io.NodeOutput([[context[:, :count], options] for context, options in conditioning])


class TestNodes(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            TestTrouble,
            TestFirstTokens,
            TestTextEmbedding,
            TestLanguageModel,
            TestTensorConditioning,
            TestRandomLatent,
            TestFailingVAE,
            *faults.NODES,
        ]


async def comfy_entrypoint() -> TestNodes:
    return TestNodes()

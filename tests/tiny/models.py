"""The committed toy models: where they are, how they are loaded and run in this process, and how their clips are
decoded."""

from pathlib import Path

import comfy.latent_formats
import safetensors.torch
import torch
from comfy_extras import nodes_wan

from ...turbo_core.attention import SLA
from ...turbo_core.convert.convert import Request, convert
from ...turbo_core.host import run as host_run
from ...turbo_core.host.attention_patch import with_attention
from ...turbo_core.host.load import load_model
from ..support import checkpoints
from . import world
from .nodes import toy_text
from .training import canvases, whole_vae

WEIGHTS = checkpoints.TOY_WEIGHTS
T2V, I2V_HIGH, I2V_LOW = checkpoints.TOY_T2V, checkpoints.TOY_I2V_HIGH, checkpoints.TOY_I2V_LOW
VAE, LORA = checkpoints.TOY_VAE, checkpoints.TOY_LORA
TEACHER, FINE_TUNE = checkpoints.TOY_TEACHER, checkpoints.TOY_FINE_TUNE
BATCH = 16


def load_vae(path: Path = WEIGHTS / VAE) -> torch.nn.Module:
    tensors = {name: value.float() for name, value in safetensors.torch.load_file(path).items()}
    vae = whole_vae.new_vae(tensors["decoder.head.0.gamma"].shape[0])
    vae.load_state_dict(tensors)
    return vae


def load(
    path: Path,
    key_blocks: int | None = None,
    dtype: str = "bf16",
    pv: str = "",
    activations: str = "fine",
    untrained: bool = False,
):
    """A ModelPatcher with sparse-linear attention to this many of the 9 key blocks, in 16 bits or with v in the format
    `pv`; or with dense attention. `activations` of int8 weights as the Loader's. `untrained`: also without `proj_l`."""
    patcher = load_model(str(path), dtype, activations)
    if key_blocks is None:
        return with_attention(patcher, "dense", 0.1, "", False)
    settings = SLA((key_blocks + 0.5) / 9.5, linear=not untrained, pv=pv)
    clone = with_attention(patcher, "sla", settings.topk, "", untrained)
    for i in range(len(patcher.model.diffusion_model.blocks)):
        clone.add_object_patch(f"diffusion_model.blocks.{i}.self_attn.sla", settings)
    return clone


def int8(path: Path, folder: Path) -> Path:
    """The checkpoint with its blocks' linears in int8, by our own converter."""
    target = folder / f"{path.stem}-int8.safetensors"
    if not target.exists():
        convert(Request(model=path, output=target, weights="int8_block"))
    return target


@torch.no_grad()
def sample(
    high,
    scenes: list[world.Scene],
    seed: int,
    steps: int = 4,
    mode: str = "sde",
    low=None,
    vae=None,
    boundary: float = 0.9,
    start: torch.Tensor | None = None,
    end: torch.Tensor | None = None,
) -> torch.Tensor:
    """Latents [clips, 16, 9, 16, 16], in batches of 16 with a seed each. With `vae`, frames are given: the first ones
    of the scenes, or `start` [clips, frames, H, W, 3] and maybe `end`."""
    results = []
    for i in range(0, len(scenes), BATCH):
        batch = slice(i, i + BATCH)
        text = torch.cat([toy_text.encode(scene.prompt)[0] for scene in scenes[batch]])
        options = {}
        if vae is not None:
            first = torch.stack([world.render(scene, frames=1) for scene in scenes[batch]])
            options = given(vae, first if start is None else start[batch], None if end is None else end[batch])
        latent = {"samples": torch.zeros(len(text), 16, canvases.FRAMES, canvases.CLIP, canvases.CLIP)}
        result = host_run.run(high, [[text, options]], latent, seed + i, steps, 0, boundary, mode, "cpu", low=low)
        results.append(result["samples"])
    return torch.cat(results)


class NodesVAE:
    """What ComfyUI's conditioning nodes use of a VAE, on whole clips."""

    latent_channels = 16

    def __init__(self, vae: torch.nn.Module):
        self.vae = vae

    def spacial_compression_encode(self) -> int:
        return canvases.PIXELS

    def encode(self, clip: torch.Tensor) -> torch.Tensor:
        return encode(self.vae, clip[None])


def given(vae: torch.nn.Module, start: torch.Tensor, end: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """What ComfyUI's nodes put into the conditioning of clips with these first and last frames [clips, frames, H, W,
    3]."""
    node = nodes_wan.WanImageToVideo if end is None else nodes_wan.WanFirstLastFrameToVideo
    options: dict[str, list[torch.Tensor]] = {}
    for i, frames in enumerate(start):
        pictures = {"start_image": frames} | ({} if end is None else {"end_image": end[i]})
        text = [[torch.zeros(1, 1), {}]]
        positive = node.execute(text, text, NodesVAE(vae), world.SIZE, world.SIZE, world.FRAMES, 1, **pictures).args[0]
        for key, value in positive[0][1].items():
            options.setdefault(key, []).append(value)
    return {key: torch.cat(values) for key, values in options.items()}


@torch.no_grad()
def encode(vae: torch.nn.Module, clips: torch.Tensor) -> torch.Tensor:
    """Clips [B, T, H, W, 3] in 0..1 -> latents as ComfyUI's VAEEncode gives them."""
    video = (clips * 2 - 1).permute(0, 4, 1, 2, 3)
    return torch.cat([whole_vae.encode(vae, v[None].contiguous(memory_format=torch.channels_last_3d)) for v in video])


@torch.no_grad()
def decode(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Latents as ComfyUI's LATENT holds them -> clips [B, T, H, W, 3] in 0..1."""
    parts = [whole_vae.decode(vae, z[None].contiguous(memory_format=torch.channels_last_3d)) for z in latents]
    return ((torch.cat(parts) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1)


def latent_format() -> comfy.latent_formats.LatentFormat:
    return comfy.latent_formats.Wan21()


def write(name: str, tensors: dict[str, torch.Tensor], folder: Path = WEIGHTS) -> Path:
    """Saves weights as they are committed: bfloat16, in the file type that is published for their kind."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().to(torch.bfloat16).contiguous() for key, value in tensors.items()}
    path = folder / name
    if name.endswith(".pth"):
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    return path

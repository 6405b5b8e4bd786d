"""Small random VAEs in this process, each a ComfyUI VAE."""

from pathlib import Path

import comfy.model_patcher
import comfy.sd
import torch
from comfy.ldm.wan import vae2_2
from comfy.taesd.taehv import TAEHV
from comfy.taesd.taesd import TAESD

from . import checkpoints


def wan21(dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    return comfy.sd.VAE(sd=checkpoints.vae_state_dict(), dtype=dtype)


def wan22() -> comfy.sd.VAE:
    """ComfyUI builds Wan 2.2's VAE at its full width (2.8 GB in float32) whatever the file holds, so a narrow one is
    put in."""
    vae = wan21()
    torch.manual_seed(0)
    model = vae2_2.WanVAE(
        dim=8,
        dec_dim=16,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    ).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.ones_like(value) if name.endswith("gamma") else torch.randn_like(value) * 0.05)
    vae.first_stage_model, vae.latent_channels = model, 48
    vae.patcher = comfy.model_patcher.CoreModelPatcher(
        model, load_device=vae.device, offload_device=torch.device("cpu")
    )
    vae.upscale_ratio = (vae.upscale_ratio[0], 16, 16)
    return vae


def taehv_state_dict(channels: int = 16, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The exact layout of lighttaew2_1, of lighttaew2_2 (48 channels) and, in float16, of taehv: the class has one
    width."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in TAEHV(latent_channels=channels).state_dict().items()}
    return {
        name: (torch.randn(shape, generator=generator) / max(1, shape[1:].numel()) ** 0.5).to(dtype)
        for name, shape in shapes.items()
    }


def write_draft(models_dir: Path) -> None:
    """The small VAE of the shared server where ComfyUI looks for it; one that is there stays."""
    path = models_dir / "vae_approx" / checkpoints.DRAFT_VAE
    if not path.exists():
        checkpoints.write_safetensors(path, taehv_state_dict())


def taehv(channels: int = 16, dtype: torch.dtype = torch.float32) -> comfy.sd.VAE:
    """A TAEHV. Of one with 16 channels in float16 ComfyUI takes it that its latents are those of HunyuanVideo."""
    return comfy.sd.VAE(sd=taehv_state_dict(channels, dtype))


def taesd_state_dict() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in TAESD(latent_channels=4).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def taesd() -> comfy.sd.VAE:
    """A VAE of another architecture (TAESD)."""
    return comfy.sd.VAE(sd=taesd_state_dict())


def out_of_memory(vae: comfy.sd.VAE, at: int, above: int) -> list[int]:
    """From its `at`-th chunk on the decoder runs out of memory on latents with a side longer than `above`. Returns the
    list that the widths of its inputs go to."""
    seen = []

    def refuse(module, args) -> None:
        seen.append(max(args[0].shape[3:]))
        if len(seen) >= at and seen[-1] > above:
            raise torch.OutOfMemoryError("Allocation on device failed (made by a test)")

    vae.first_stage_model.decoder.conv1.register_forward_pre_hook(refuse)
    return seen

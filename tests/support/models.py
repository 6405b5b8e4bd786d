"""Loaded models and conditioning of the golden cases, in this process."""

from pathlib import Path

import comfy.sd
import torch
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.load import load_model

from . import checkpoints


def load_case(case: dict, folder: Path) -> list:
    """The ModelPatchers of a golden case, high expert first, loaded from `.pth` files in upstream's layout."""
    models = []
    for i, state_dict in enumerate(checkpoints.golden_state_dicts(case)):
        model = load_model(str(checkpoints.write_pth(folder / f"expert{i}.pth", state_dict)))
        models.append(with_attention(model, "sla", case["sla_topk"], "", False) if case["sla_topk"] else model)
    return models


def conditioning(case: dict, tensors: dict[str, torch.Tensor], latent_format) -> list:
    """ComfyUI CONDITIONING of a golden case: its text and, for I2V, its image on latent frame 0."""
    options = {}
    if case["kind"] == "i2v":
        image = tensors["image_latent"]
        mask = torch.ones(1, 1, *image.shape[2:])
        mask[:, :, 0] = 0  # known, in ComfyUI's polarity
        options = {"concat_latent_image": latent_format.process_out(image), "concat_mask": mask}
    return [[tensors["context"].float(), options]]


def stock_state_dict(seed: int) -> dict[str, torch.Tensor]:
    """A checkpoint whose patch embedding is a convolution: a stock Wan file."""
    state_dict = checkpoints.upstream_state_dict(seed)
    conv = state_dict["patch_embedding.weight"].unflatten(1, (-1, 1, 2, 2))
    return state_dict | {"patch_embedding.weight": conv}


def stock_model(seed: int):
    """The ModelPatcher that ComfyUI's own loader makes of it."""
    return comfy.sd.load_diffusion_model_state_dict(stock_state_dict(seed))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()

"""Two tiny experts in one run: their conditioning, their latent, and clones that record each forward pass."""

import torch
from comfy.patcher_extension import WrappersMP

from ...turbo_core.host.run import run
from . import checkpoints

SHAPE = (1, 16, 2, 8, 8)


def text(width: int = 4096, batch: int = 1) -> list:
    return [[checkpoints.draw(1, "text", (batch, 8, width)), {}]]


def image_text(key: str = "text") -> list:
    mask = torch.ones(1, 1, *SHAPE[2:])
    mask[:, :, 0] = 0
    options = {"concat_latent_image": checkpoints.draw(1, "image", SHAPE), "concat_mask": mask}
    return [[checkpoints.draw(1, key, (1, 8, 4096)), options]]


def latent(batch: int = 1, **more) -> dict:
    return {"samples": torch.zeros(batch, *SHAPE[1:]), **more}


def traced(model, name: str, calls: list):
    """A clone whose forward passes are recorded as (name, timestep)."""
    clone = model.clone()

    def record(executor, x, t, *args, **kwargs):
        calls.append((name, round(float(t[0]))))
        return executor(x, t, *args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "trace", record)
    return clone


def sample(high, positive, low=None, steps=4, boundary=0.9, mode="sde", seed=3, **more):
    return run(high, positive, more.pop("latent", latent()), seed, steps, 0, boundary, mode, "cpu", low, **more)[
        "samples"
    ]


class Stop(BaseException):
    """Stands for ComfyUI's interrupt, which is no Exception either: `except Exception` does not catch it."""

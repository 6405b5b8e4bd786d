"""Two tiny experts in one run: their conditioning, their latent, the ways to sample them, and clones that record each
pass."""

from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

from ...turbo_core.host.guider import ExpertGuider
from ...turbo_core.host.run import run
from ...turbo_core.host.sampler import make_sampler
from . import checkpoints

SHAPE = (1, 16, 2, 8, 8)


def text(width: int = 4096, batch: int = 1, key: str = "text") -> list:
    return [[checkpoints.draw(1, key, (batch, 8, width)), {}]]


def image_text(key: str = "text", shape: tuple[int, ...] = SHAPE, **more) -> list:
    """Text and a start image for latents of a shape."""
    mask = torch.ones(1, 1, *shape[2:])
    mask[:, :, 0] = 0
    image = {"concat_latent_image": checkpoints.draw(1, "image", shape), "concat_mask": mask}
    return [[checkpoints.draw(1, key, (1, 8, 4096)), image | more]]


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


def traced_pair(experts) -> tuple:
    """Traced clones of the high and the low expert, and the list that records both."""
    calls = []
    high, low = (traced(model, name, calls) for model, name in zip(experts, ("high", "low"), strict=True))
    return high, low, calls


def sample(high, positive, low=None, steps=4, boundary=0.9, mode="sde", seed=3, **more):
    return run(high, positive, more.pop("latent", latent()), seed, steps, 0, boundary, mode, "cpu", low, **more)[
        "samples"
    ]


def guided(positive, sigmas, high, low=None, mode="ode", noise=None, given=None, **more) -> torch.Tensor:
    """Samples with the separate parts; `mode` may be a SAMPLER."""
    guider = ExpertGuider(high, low, **more)
    guider.set_conds(positive)
    sampler = make_sampler(mode, "cpu") if isinstance(mode, str) else mode
    noise = noise or Noise_RandomNoise(3)
    return SamplerCustomAdvanced.execute(noise, guider, sampler, torch.as_tensor(sigmas), given or latent())[0][
        "samples"
    ]


def given_noise(values: torch.Tensor) -> SimpleNamespace:
    """A NOISE of these values."""
    return SimpleNamespace(seed=0, generate_noise=lambda latent: values)


def stock_sample(model, positive, steps: int = 1) -> torch.Tensor:
    """ComfyUI's own sampling, without a guider of the pack."""
    noise = comfy.sample.prepare_noise(torch.zeros(SHAPE), 3)
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", positive, positive, torch.zeros(SHAPE), seed=3
    )


class Stop(BaseException):
    """Stands for ComfyUI's interrupt, which is no Exception either: `except Exception` does not catch it."""

"""rCM's samplers as a ComfyUI SAMPLER."""

from collections.abc import Callable
from typing import Any, Final, Literal

import comfy.model_management
import comfy.samplers
import torch
from tqdm.auto import tqdm

from ..checkpoint.variants import I2V
from ..sampling import rcm, schedule
from .base_model import TurboWAN

AUTO: Final = "auto"  # as in TurboDiffusion's example for the task that the model's few steps were trained for
SamplerMode = Literal["auto", "sde", "ode"]
NoiseDevice = Literal["cpu", "gpu"]
NOISE_DEVICES: tuple[NoiseDevice, ...] = ("cpu", "gpu")


def make_sampler(mode: SamplerMode, noise_device: NoiseDevice) -> comfy.samplers.KSAMPLER:
    """A SAMPLER of `sample_rcm`."""
    return comfy.samplers.KSAMPLER(sample_rcm, {"mode": mode, "noise_device": noise_device})


def sample_rcm(
    model: Callable[..., torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    *,
    mode: SamplerMode = "sde",
    noise_device: NoiseDevice = "cpu",
) -> torch.Tensor:
    """`rcm.sample` in k-diffusion's calling convention: model(x, sigma) -> x0 of x's shape, `sigmas` [steps + 1]. It
    reports progress, calls back after each step for previews, and stops between steps on an interrupt.

    Mode auto is ode for a model whose few steps are those of image to video, else sde. Raises TurboError for noise
    levels that are not a flow model's."""
    schedule.check_levels(sigmas.tolist())
    extra_args = extra_args or {}
    per_sample = x.new_ones([x.shape[0]])
    noise = rcm.NoiseStream(
        extra_args.get("seed") or 0, x.shape, x.device if noise_device == "gpu" else torch.device("cpu")
    )
    noise.continue_after(getattr(model, "noise", None))
    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:

        def denoise(state: torch.Tensor, sigma: float) -> torch.Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return model(state, per_sample * sigma, **extra_args)

        def on_step(i: int, state: torch.Tensor, sigma: float, x0: torch.Tensor) -> None:
            bar.update()
            if callback is not None:
                callback({"x": state, "i": i, "sigma": sigma, "sigma_hat": sigma, "denoised": x0})

        return rcm.sample(denoise, x, sigmas, _mode_of(model) if mode == AUTO else mode, noise.draw, on_step)


def _mode_of(model: Any) -> rcm.Mode:
    """The mode for what a sampler is given: ComfyUI's wrapper of a guider; the network is its inner_model."""
    network = getattr(getattr(model, "inner_model", None), "inner_model", None)
    return "ode" if isinstance(network, TurboWAN) and network.spec.steps_of == I2V else "sde"

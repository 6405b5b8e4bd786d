"""A whole few-step run in one call: what TurboDiffusionSample does, composed of the same parts as the separate
nodes."""

from typing import Any

import comfy.model_patcher
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

from ..record import RUN
from ..sampling import rcm, schedule
from .conditioning import Conditioning, check_latent
from .guider import ExpertGuider, logger, model_spec
from .sampler import NoiseDevice, SamplerMode, make_sampler


def run_sigmas(high: comfy.model_patcher.ModelPatcher, steps: int, sigma_max: float) -> torch.Tensor:
    """The run's SIGMAS, float32; sigma_max 0 stands for the model's own (80 for T2V, 200 for I2V)."""
    return torch.tensor(schedule.sigmas(steps, sigma_max or model_spec(high).sigma_max), dtype=torch.float32)


def needs_low_expert(high: comfy.model_patcher.ModelPatcher, steps: int, sigma_max: float, boundary: float) -> bool:
    """Whether any step of the run belongs to the low expert."""
    schedule.check_boundary(boundary)
    return any(schedule.uses_low_expert(sigma, boundary) for sigma in run_sigmas(high, steps, sigma_max)[:-1].tolist())


def run(
    high: comfy.model_patcher.ModelPatcher,
    positive: Conditioning,
    latent: dict[str, Any],
    seed: int,
    steps: int,
    sigma_max: float,
    boundary: float,
    mode: SamplerMode,
    noise_device: NoiseDevice,
    low: comfy.model_patcher.ModelPatcher | None = None,
    negative: Conditioning | None = None,
    cfg_high: float = 1.0,
    cfg_low: float = 1.0,
) -> dict[str, Any]:
    """Samples a LATENT; its `samples` are [B, 16, T, H, W]. Equals ExpertGuider, the rCM sampler and RandomNoise in
    SamplerCustomAdvanced bit for bit when the noise is drawn on the CPU. Raises TurboError for inputs that do not fit
    together."""
    # Checked here, before ComfyUI gives an empty latent the model's channels.
    check_latent(latent["samples"], model_spec(high).out_channels)
    guider = ExpertGuider(high, low, boundary)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg_high, cfg_low)
    if (
        low is None
        and guider.spec.takes_image
        and not guider.spec.image_embedding
        and needs_low_expert(high, steps, sigma_max, boundary)
    ):
        logger.warning("This model is one of two experts and no low expert is connected: it runs all %d steps.", steps)
    noise = Noise_RandomNoise(seed) if noise_device == "cpu" else _DeviceNoise(seed, high.load_device)
    sampled = SamplerCustomAdvanced.execute(
        noise, guider, make_sampler(mode, noise_device), run_sigmas(high, steps, sigma_max), latent
    )
    return sampled[0] | {RUN: high.model.last_run}


class _DeviceNoise:
    """A NOISE drawn on the compute device, as TurboDiffusion's command line does."""

    def __init__(self, seed: int, device: torch.device):
        self.seed, self._device = seed, device

    def generate_noise(self, latent: dict[str, torch.Tensor]) -> torch.Tensor:
        return rcm.NoiseStream(self.seed, latent["samples"].shape, self._device).draw()

"""The rCM schedule where ComfyUI's own schedulers and samplers look for one: in a MODEL's `model_sampling`."""

from typing import Any

import comfy.model_sampling
import torch

from ..checkpoint.layout import WanSpec
from ..sampling.schedule import sigma_at

# The shift of ComfyUI's flow schedule that comes nearest to rCM's at 4 steps (within 0.02). Other nodes read it as
# `shift`.
NEAREST_SHIFT = 5.0
_SIGMA_MAX = "rcm_sigma_max"  # among a model config's sampling settings


def rcm_settings(settings: dict[str, Any], spec: WanSpec) -> dict[str, Any]:
    """A copy of a model config's `sampling_settings` from which RCMSampling is built for the model `spec`."""
    return settings | {"shift": NEAREST_SHIFT, _SIGMA_MAX: spec.sigma_max}


class RCMSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """ComfyUI's flow sampling with the rCM schedule as its curve, so that a TurboWan model in a stock KSampler is given
    the noise levels it was trained on: `simple` with 4 steps or more gives those of `schedule.sigmas`.

    Only the curve differs: from a position in the schedule (1 at its start, 0 at its end) to a noise level. Timesteps
    given to the network, noise scaling and denoising are ComfyUI's. Nodes that set a shift put another object in its
    place. Built from a model config with `rcm_settings`."""

    _sigma_max: float | None = None  # None: the plain shifted curve

    def __init__(self, model_config: Any):
        super().__init__(model_config)
        self._start = float(model_config.sampling_settings[_SIGMA_MAX])
        self.set_parameters(shift=self.shift, multiplier=self.multiplier)

    def set_parameters(self, shift: float = NEAREST_SHIFT, **kwargs: Any) -> None:
        """As the base class; a shift other than NEAREST_SHIFT, which stands for rCM's curve, gives ComfyUI's curve of
        that shift."""
        self._sigma_max = getattr(self, "_start", None) if shift == NEAREST_SHIFT else None
        super().set_parameters(shift=shift, **kwargs)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        """The noise level, float32, at each position * `multiplier`; computed on the CPU, since some devices have no
        float64."""
        if self._sigma_max is None:
            return super().sigma(timestep)
        positions = torch.as_tensor(timestep)
        levels = [sigma_at(position / self.multiplier, self._sigma_max) for position in positions.flatten().tolist()]
        return torch.tensor(levels, dtype=torch.float32, device=positions.device).view(positions.shape)

    def percent_to_sigma(self, percent: float) -> float:
        """Rounded to float32, as SIGMAS are: the step that begins at `percent` of a run has exactly this noise
        level."""
        if self._sigma_max is None or not 0 < percent < 1:
            return super().percent_to_sigma(percent)
        return torch.tensor(sigma_at(1 - percent, self._sigma_max), dtype=torch.float32).item()

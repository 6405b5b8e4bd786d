"""rCM's two samplers. Both estimate the clean video x0 at each noise level; they differ in how they go to the next."""

from collections.abc import Callable
from typing import Literal

import torch

Mode = Literal["sde", "ode"]
MODES: tuple[Mode, ...] = ("sde", "ode")


def sample(
    denoise: Callable[[torch.Tensor, float], torch.Tensor],
    x: torch.Tensor,
    sigmas: torch.Tensor,
    mode: Mode,
    draw_noise: Callable[[], torch.Tensor],
    on_step: Callable[[int, torch.Tensor, float, torch.Tensor], None],
) -> torch.Tensor:
    """Runs a model through the noise levels and returns the last state, in x's dtype and on x's device.

    denoise(x, sigma) -> x0, all [B, C, T, H, W]; `sigmas` [steps + 1] falling; `draw_noise()` gives standard noise of
    x's shape, on any device, and is called once per step in mode "sde"; `on_step(i, x, sigma, x0)` is called after each
    estimate. The state is float64, as upstream:

        sde: x <- (1 - sigma_next) x0 + sigma_next noise
        ode: x <- x + (sigma_next - sigma) (x - x0) / sigma

    The state is on the CPU whatever x's device: Apple's MPS and Intel Arc have no float64. Each step copies x to the
    device before `denoise`, and x0 and noise from there to the CPU, all three in their own dtype. `on_step`, and with
    it the preview, is given the copies on the device.
    """
    levels = sigmas.tolist()  # Python floats are float64
    state = _on_cpu(x)
    for i, (sigma, sigma_next) in enumerate(zip(levels, levels[1:], strict=False)):
        rounded = state.to(x.dtype)
        given = rounded.to(x.device)
        x0 = denoise(given, sigma)
        on_step(i, given, sigma, x0)
        if mode == "sde":
            state = (1 - sigma_next) * _on_cpu(x0) + sigma_next * _on_cpu(draw_noise())
        else:
            state = state + (sigma_next - sigma) / sigma * (rounded.double() - _on_cpu(x0))
    return state.to(x.dtype).to(x.device)


def _on_cpu(x: torch.Tensor) -> torch.Tensor:
    """x in float64 on the CPU. It is converted there: the device may have no float64."""
    return x.cpu().double()


class NoiseStream:
    """Successive standard normal draws of one shape from one generator, float32.

    A run takes its initial noise and then its re-noise from the same stream, so `continue_after` skips the draw that
    the initial noise was. If that noise came from elsewhere (another NOISE node, a `batch_index`, a second pass), the
    stream is given another seed: it could otherwise repeat the very noise the run started from."""

    def __init__(self, seed: int, shape: torch.Size, device: torch.device):
        self._shape, self._device = shape, device
        self._generator = torch.Generator(device).manual_seed(seed)

    def draw(self) -> torch.Tensor:
        """The next draw, on the stream's device."""
        return torch.randn(self._shape, generator=self._generator, device=self._device, dtype=torch.float32)

    def continue_after(self, initial: torch.Tensor | None) -> None:
        """Skips the draw that `initial`, the noise a run starts from, was; takes another seed if it was not one."""
        seed = self._generator.initial_seed()
        for candidate in (seed, (seed + 1) % (1 << 64)):
            self._generator.manual_seed(candidate)
            if initial is not None and torch.equal(self.draw(), initial.float().to(self._device)):
                return
        self._generator.manual_seed(candidate)

"""The rCM schedule: which noise levels a few-step run visits, and which expert runs which.

rCM (arXiv 2510.08431) places a run at angles a between signal and noise; Wan's noise level is
sigma = sin(a) / (sin(a) + cos(a)), in (0, 1)."""

import math

import torch

from ..errors import TurboError

MIDDLE_ANGLES = (1.5, 1.4, 1.0)  # what TurboDiffusion distilled its models on, after the first, atan(sigma_max)
MAX_STEPS = 16
SIGMA_MAX_LIMIT = 14.2  # tan(MIDDLE_ANGLES[0]) is 14.10: below it the second angle would exceed the first


def angles(steps: int, sigma_max: float) -> list[float]:
    """`steps` + 1 falling angles ending in 0. Up to 4 steps the trained ones; beyond, points on the polyline through
    them (an extension: the models were trained for up to 4). Raises TurboError for values out of range."""
    check_schedule(steps, sigma_max)
    trained = _trained(sigma_max)
    if steps < len(trained):
        return [*trained[:steps], 0.0]
    return [_interpolate(trained, (len(trained) - 1) * i / steps) for i in range(steps + 1)]


def sigmas(steps: int, sigma_max: float) -> list[float]:
    """The noise levels of a run: `steps` + 1 falling values in [0, 1), the last 0, in float64."""
    return [_noise_level(a) for a in angles(steps, sigma_max)]


def sigma_at(position: float, sigma_max: float) -> float:
    """The noise level at a position of the schedule, which falls from 1 (its start) to 0 (its end, no noise):
    `sigmas(n, sigma_max)[i]` for n = 4 and above is that at 1 - i / n. A position beyond either end is taken as the
    end."""
    trained = _trained(sigma_max)
    return _noise_level(_interpolate(trained, (len(trained) - 1) * (1 - min(max(position, 0.0), 1.0))))


def _trained(sigma_max: float) -> list[float]:
    return [math.atan(sigma_max), *MIDDLE_ANGLES, 0.0]


def _interpolate(points: list[float], index: float) -> float:
    """Linear between the two points beside a fractional index."""
    below = int(index)
    above = min(below + 1, len(points) - 1)
    return points[below] + (points[above] - points[below]) * (index - below)


def _noise_level(angle: float) -> float:
    return math.sin(angle) / (math.sin(angle) + math.cos(angle))


def uses_low_expert(sigma: float, boundary: float) -> bool:
    """Whether a step at `sigma` belongs to the low-noise expert: sigma < boundary, as upstream.

    Compared in float32, the precision SIGMAS travel in, so that the split and the switch always agree."""
    return bool(torch.tensor(sigma, dtype=torch.float32) < torch.tensor(boundary, dtype=torch.float32))


def in_first_steps(sigma: torch.Tensor, levels: torch.Tensor, steps: int) -> bool:
    """Whether a call of the model at noise `sigma` [B] belongs to the first `steps` steps of a run over SIGMAS [steps +
    1]: its noise is above that of the step after them. So calls between two levels (second-order samplers) count to the
    step they are in, and both experts of a run count the same steps."""
    return steps >= len(levels) - 1 or float(sigma.max()) > float(levels[steps])


def split(levels: torch.Tensor, boundary: float) -> tuple[torch.Tensor, torch.Tensor]:
    """SIGMAS [steps + 1] as the high expert's and the low expert's part, both with the sigma they switch at.

    A part without a step is empty."""
    high = sum(not uses_low_expert(float(sigma), boundary) for sigma in levels[:-1])
    empty = levels[:0]
    steps = len(levels) - 1
    return (levels[: high + 1] if high else empty, levels[high:] if high < steps else empty)


def check_schedule(steps: int, sigma_max: float) -> None:
    """Raises TurboError with what to do unless 1 <= steps <= 16 and sigma_max is finite, positive and, for more than
    one step, above 14.2."""
    if not 1 <= steps <= MAX_STEPS:
        raise TurboError(f"steps is {steps}: choose 1 to {MAX_STEPS} (the models were trained for up to 4).")
    if not (math.isfinite(sigma_max) and sigma_max > 0):
        raise TurboError(f"sigma_max is {sigma_max}: choose a positive number, 80 for T2V and 200 for I2V models.")
    if steps > 1 and sigma_max <= SIGMA_MAX_LIMIT:
        raise TurboError(
            f"sigma_max is {sigma_max}: with more than one step it must exceed {SIGMA_MAX_LIMIT}, else the noise "
            "would rise after the first step; use 80 for T2V and 200 for I2V models."
        )


def check_levels(levels: list[float]) -> None:
    """Raises TurboError unless the noise levels of a run are a flow model's: from 0 to 1, and 0 at most at the end."""
    wrong = next((level for level in levels if not 0 <= level <= 1), 0.0 if 0.0 in levels[:-1] else None)
    if wrong is not None:
        raise TurboError(
            f"The SIGMAS hold {wrong:g} where a step begins or ends: Wan's noise levels fall from at most 1 to 0 at "
            "the end; take them "
            "from TurboDiffusionSigmas or BasicScheduler."
        )


def check_boundary(boundary: float) -> None:
    """Raises TurboError unless 0 < boundary <= 1."""
    if not 0 < boundary <= 1:
        raise TurboError(
            f"boundary is {boundary}: it is the noise level where the low expert takes over, above 0 and at most "
            "1 (0.9 for TurboWan I2V A14B)."
        )

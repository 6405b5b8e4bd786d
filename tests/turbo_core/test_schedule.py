"""The rCM schedule against its closed form, and the split between two experts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.sampling import schedule

PROPERTY = settings(derandomize=True, deadline=None, database=None)
MIDDLE = [0.93378, 0.85290, 0.60898]  # tan(a) / (1 + tan(a)) of 1.5, 1.4 and 1.0
STEPS = st.integers(1, 16)
SIGMA_MAX = st.floats(14.2, 1e6, exclude_min=True)


def float32(values):
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("sigma_max, first", [(80, 0.98765), (200, 0.99502)])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_trained_schedule(steps, sigma_max, first):
    sigmas = schedule.sigmas(steps, sigma_max)
    assert sigmas == pytest.approx([first, *MIDDLE[: steps - 1], 0], abs=5e-6)  # five published digits
    assert sigmas[0] == pytest.approx(sigma_max / (1 + sigma_max), rel=1e-14)  # float64 sin and cos
    assert sigmas[-1] == 0


@pytest.mark.parametrize("name", ["t2v_dense", "i2v_two_experts_sde"])
def test_golden_schedule_and_experts(name):
    case, tensors = checkpoints.golden_case(name)
    sigmas = schedule.sigmas(case["steps"], case["sigma_max"])
    assert torch.equal(torch.tensor(sigmas, dtype=torch.float64), tensors["sigmas"])
    if case["seed_low"] is not None:
        experts = [int(schedule.uses_low_expert(sigma, case["boundary"])) for sigma in sigmas[:-1]]
        assert experts == case["expert_per_step"]


@PROPERTY
@given(steps=STEPS, sigma_max=SIGMA_MAX)
def test_noise_falls_strictly_from_sigma_max_to_zero(steps, sigma_max):
    sigmas = schedule.sigmas(steps, sigma_max)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(sigma_max / (1 + sigma_max), rel=1e-9) and sigmas[-1] == 0
    assert all(a > b for a, b in zip(sigmas, sigmas[1:], strict=False))


@pytest.mark.parametrize("steps", [8, 12, 16])
def test_more_steps_pass_through_every_trained_angle(steps):
    trained = [math.atan(80), 1.5, 1.4, 1.0, 0.0]
    angles = schedule.angles(steps, 80)
    assert angles[:: steps // 4] == trained
    middles = [(a + b) / 2 for a, b in zip(trained, trained[1:], strict=False)]
    if steps == 8:
        assert angles[1::2] == pytest.approx(middles, rel=1e-15)


def test_five_steps_are_points_on_the_polyline():
    """At 4i/5: 0.8 of the way down the first segment, 0.6 down the second, and so on."""
    first = math.atan(200)
    want = [first, first + 0.8 * (1.5 - first), 1.5 - 0.6 * 0.1, 1.4 - 0.4 * 0.4, 1.0 - 0.2 * 1.0, 0]
    assert schedule.angles(5, 200) == pytest.approx(want, rel=1e-14)  # float64 rounding


@pytest.mark.parametrize(
    "steps, boundary, high_steps",
    [(4, 0.9, 2), (3, 0.9, 2), (2, 0.9, 2), (1, 0.9, 1), (4, 1.0, 0), (4, 0.001, 4), (4, 0.8, 3), (4, 0.95, 1)],
)
def test_split_at_the_boundary(steps, boundary, high_steps):
    sigmas = float32(schedule.sigmas(steps, 200))
    high, low = schedule.split(sigmas, boundary)
    assert torch.equal(high, sigmas[: high_steps + 1] if high_steps else sigmas[:0])
    assert torch.equal(low, sigmas[high_steps:] if high_steps < steps else sigmas[:0])


@PROPERTY
@given(steps=STEPS, sigma_max=SIGMA_MAX, boundary=st.floats(0, 1, exclude_min=True))
def test_both_parts_make_the_whole_and_agree_with_the_switch(steps, sigma_max, boundary):
    sigmas = float32(schedule.sigmas(steps, sigma_max))
    high, low = schedule.split(sigmas, boundary)
    assert len(high) != 1 and len(low) != 1
    if len(high) and len(low):
        assert high[-1] == low[0]
    joined = torch.cat((high[:-1], low)) if len(low) else high
    assert torch.equal(joined, sigmas)
    assert not any(schedule.uses_low_expert(float(sigma), boundary) for sigma in high[:-1])
    assert all(schedule.uses_low_expert(float(sigma), boundary) for sigma in low[:-1])


@pytest.mark.parametrize("sigma", schedule.sigmas(4, 200)[:-1])
def test_a_step_at_the_boundary_is_the_high_experts(sigma):
    rounded = float(float32(sigma))  # what a SIGMAS tensor holds, above or below the float64 value
    for at in (sigma, rounded):
        for boundary in (sigma, rounded):
            assert not schedule.uses_low_expert(at, boundary)
    above = float(torch.nextafter(float32(sigma), float32(2.0)))
    assert schedule.uses_low_expert(sigma, above) and not schedule.uses_low_expert(above, sigma)


@pytest.mark.parametrize(
    "steps, sigma_max, name",
    [
        (0, 80, "steps is 0"),
        (17, 80, "steps is 17"),
        (-1, 80, "steps is -1"),
        (2, 14.2, "sigma_max is 14.2"),
        (2, 1.0, "sigma_max is 1.0"),
        (1, 0, "sigma_max is 0"),
        (1, -80, "sigma_max is -80"),
        (1, math.nan, "sigma_max is nan"),
        (4, math.nan, "sigma_max is nan"),
        (4, math.inf, "sigma_max is inf"),
        (1, math.inf, "sigma_max is inf"),
    ],
)
def test_an_impossible_schedule_is_refused(steps, sigma_max, name):
    with pytest.raises(TurboError, match=f"^{name}: "):
        schedule.sigmas(steps, sigma_max)


def test_one_step_may_start_low():
    assert schedule.sigmas(1, 14.2) == pytest.approx([14.2 / 15.2, 0], rel=1e-14)


@pytest.mark.parametrize("boundary", [0, -0.1, 1.01, math.nan, math.inf])
def test_an_impossible_boundary_is_refused(boundary):
    with pytest.raises(TurboError, match=f"^boundary is {boundary}: "):
        schedule.check_boundary(boundary)

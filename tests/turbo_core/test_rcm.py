"""rCM's samplers against upstream's update written here in float64, and the stream of random numbers they draw."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.other_device import OtherDevice
from td_pack.turbo_core.sampling import rcm, schedule

SHAPE = torch.Size((1, 4, 2, 3, 5))
SEED = 17
CPU = torch.device("cpu")


def draws(count, seed=SEED):
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def denoise(x, sigma):
    """An x0 that depends on the state and the level, element by element."""
    return torch.tanh(x) * (1 - sigma) + 0.1 * sigma


def run(mode, sigmas, x, noise):
    """`sample`, with everything it called in order."""
    calls, noise = [], iter(noise)

    def draw_noise():
        calls.append("noise")
        return next(noise)

    def traced(given, sigma):
        calls.append(("denoise", sigma))
        return denoise(given, sigma)

    def on_step(i, given, sigma, x0):
        assert torch.equal(x0, denoise(given, sigma))
        calls.append(("step", i))

    return rcm.sample(traced, x, torch.tensor(sigmas), mode, draw_noise, on_step), calls


def upstream(mode, sigmas, x, noise):
    """TurboDiffusion's loop: v = (x - x0) / s; sde: x0 = x - s v, then re-noise; ode: an Euler step along v."""
    x = x.double()
    for i in range(len(sigmas) - 1):
        now, following = sigmas[i], sigmas[i + 1]
        velocity = (x - denoise(x, now)) / now
        if mode == "sde":
            x = (1 - following) * (x - now * velocity) + following * noise[i].double()
        else:
            x = x - (now - following) * velocity
    return x


@pytest.mark.parametrize("mode", ["sde", "ode"])
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_update_is_upstreams(steps, mode):
    sigmas = schedule.sigmas(steps, 80)
    x, *noise = draws(steps + 1)
    out, calls = run(mode, sigmas, x, noise)
    want = upstream(mode, torch.tensor(sigmas).tolist(), x, noise)
    assert out.dtype == torch.float32
    # The denoiser sees the state in float32; nothing else rounds: a few float32 roundings of values below 4.
    torch.testing.assert_close(out.double(), want, rtol=0, atol=2e-6)
    per_step = ["noise"] if mode == "sde" else []
    levels = torch.tensor(sigmas).double().tolist()
    assert calls == [c for i in range(steps) for c in (("denoise", levels[i]), ("step", i), *per_step)]


@pytest.mark.parametrize("mode", ["sde", "ode"])
def test_state_is_float64_between_steps(mode):
    """With a float64 latent nothing rounds to float32 on the way."""
    sigmas = torch.tensor(schedule.sigmas(4, 200), dtype=torch.float64).tolist()
    x, *noise = draws(5)
    levels = torch.tensor(sigmas, dtype=torch.float64)
    out = rcm.sample(denoise, x.double(), levels, mode, iter(noise).__next__, lambda *_: None)
    torch.testing.assert_close(out, upstream(mode, sigmas, x, noise), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["sde", "ode"])
@pytest.mark.parametrize("kind", ["mps", "xpu"])
def test_a_device_without_float64_gives_the_bits_of_the_cpu(kind, mode):
    sigmas = schedule.sigmas(4, 80)
    x, *noise = draws(5)
    expected, _ = run(mode, sigmas, x, noise)
    with OtherDevice(kind) as other:
        out, _ = run(mode, sigmas, x.to(other.device), [each.to(other.device) for each in noise])
        assert out.device == other.device
        assert torch.equal(out.cpu(), expected)


def test_steps_too_small_for_the_latents_precision_add_up():
    """Constant velocity 1 from 20 in bfloat16, whose spacing there is 0.125: a state rounded after each step of 0.02
    would not move at all."""
    x, sigmas = torch.full(SHAPE, 20.0, dtype=torch.bfloat16), torch.linspace(0.98, 0.68, 16)
    out = rcm.sample(lambda given, sigma: given - sigma, x, sigmas, "ode", pytest.fail, lambda *_: None)
    torch.testing.assert_close(out.double(), torch.full(SHAPE, 19.7).double(), rtol=0, atol=0.125)  # one spacing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_last_step_returns_x0_itself(dtype):
    x0 = draws(2)[1].to(dtype)
    sigmas = torch.tensor(schedule.sigmas(4, 80))
    stream = rcm.NoiseStream(SEED, SHAPE, CPU)
    out = rcm.sample(lambda *_: x0, draws(1)[0].to(dtype), sigmas, "sde", stream.draw, lambda *_: None)
    assert out.dtype == dtype and torch.equal(out, x0)


def test_no_step_returns_the_input():
    x = draws(1)[0]
    out = rcm.sample(denoise, x, torch.empty(0), "sde", pytest.fail, pytest.fail)
    assert torch.equal(out, x)


def test_stream_is_the_golden_noise():
    case, tensors = checkpoints.golden_case("t2v_dense")
    stream = rcm.NoiseStream(case["seed"], tensors["x"].shape, CPU)
    stream.continue_after(tensors["x"])
    assert all(torch.equal(stream.draw(), want) for want in tensors["renoise"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_renoise_follows_the_initial_noise(dtype):
    first, *rest = draws(4)
    stream = rcm.NoiseStream(SEED, SHAPE, CPU)
    stream.continue_after(first.to(dtype))
    assert all(torch.equal(stream.draw(), want) for want in rest)


def test_initial_noise_in_float64_reaches_the_device_in_float32(monkeypatch):
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device: generator())
    first, second = draws(2)
    with OtherDevice("mps") as other:
        stream = rcm.NoiseStream(SEED, SHAPE, other.device)
        stream.continue_after(first.double())
        assert torch.equal(stream.draw().cpu(), second)


@pytest.mark.parametrize("seed", [0, SEED, 2**64 - 1])
@pytest.mark.parametrize("initial", ["none", "zeros", "second draw", "third draw", "next seed", "another seed"])
def test_foreign_initial_noise_is_never_repeated(initial, seed):
    noise = {
        "none": None,
        "zeros": torch.zeros(SHAPE),
        "second draw": draws(2, seed)[1],
        "third draw": draws(3, seed)[2],
        "next seed": draws(1, (seed + 1) % 2**64)[0],  # whose stream replaces the one that the noise is not from
        "another seed": draws(1, 5)[0],
    }[initial]
    stream, again = (rcm.NoiseStream(seed, SHAPE, CPU) for _ in range(2))
    stream.continue_after(noise)
    again.continue_after(noise)
    renoise = [stream.draw() for _ in range(16)]
    assert all(torch.equal(again.draw(), x) for x in renoise)
    for used in (*draws(17, seed), *([] if noise is None else [noise])):
        assert not any(torch.equal(x, used) for x in renoise)

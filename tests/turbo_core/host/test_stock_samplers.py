"""A TurboWan MODEL in ComfyUI's own samplers and schedulers: the rCM noise levels, and what they make of them."""

import comfy.model_sampling
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import BasicScheduler, Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import ModelNoiseScale, ModelSamplingAuraFlow, ModelSamplingSD3
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.experts import image_text, text
from td_pack.tests.support.models import relative_error
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.run import run, run_sigmas
from td_pack.turbo_core.host.sampler import sample_rcm
from td_pack.turbo_core.sampling.rcm import NoiseStream
from td_pack.turbo_core.sampling.schedule import sigma_at, sigmas

import nodes

SHAPE = (1, 16, 2, 4, 6)
SEED = 3
# ComfyUI's samplers keep their state in float32 and ours in float64; measured: 2e-7 after 4 steps.
ROUNDING = 2e-6


def curve(model):
    return model.get_model_object("model_sampling")


def levels(model, scheduler: str = "simple", steps: int = 4) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(curve(model), scheduler, steps)


def rcm(model, steps: int = 4) -> torch.Tensor:
    return run_sigmas(model, steps, 0)


def prompt(model, words: str = "fox") -> list:
    return image_text(words, SHAPE) if model.model.spec.takes_image else text(key=words)


def empty() -> dict:
    return {"samples": torch.zeros(SHAPE)}


def k_sampled(model, sampler: str = "euler", steps: int = 4, latent: dict | None = None, denoise: float = 1.0):
    """ComfyUI's KSampler, scheduler `simple`."""
    text = prompt(model)
    node = nodes.KSampler()
    return node.sample(model, SEED, steps, 1.0, sampler, "simple", text, text, latent or empty(), denoise)[0]["samples"]


def ours(model, mode: str, low=None) -> torch.Tensor:
    return run(model, prompt(model), empty(), SEED, 4, 0, 0.9, mode, "cpu", low)["samples"]


def test_each_step_is_reported_where_there_is_a_callback():
    seen = []
    for callback in (None, seen.append):
        levels = torch.tensor([0.75, 0.5, 0.0])
        sample_rcm(lambda x, sigma: x / 2, torch.ones(SHAPE), levels, callback=callback, disable=True)
    assert [(each["i"], each["sigma"]) for each in seen] == [(0, 0.75), (1, 0.5)]
    assert torch.equal(seen[0]["x"], torch.ones(SHAPE)) and torch.equal(seen[0]["denoised"], torch.ones(SHAPE) / 2)


@pytest.fixture(params=["t2v", "i2v"])
def model(request, t2v, experts):
    return t2v if request.param == "t2v" else experts[0]


@pytest.mark.parametrize("steps", [1, 4, 5, 8, 10])
def test_simple_gives_exactly_rcm_s_noise_levels(model, steps):
    assert torch.equal(levels(model, steps=steps), rcm(model, steps))


@pytest.mark.parametrize("scheduler", comfy.samplers.SCHEDULER_NAMES)
def test_every_scheduler_stays_on_the_curve(model, scheduler):
    got = levels(model, scheduler)
    assert len(got) == 5 and got[-1] == 0 and (got[:-1] > got[1:]).all()
    # Some compute the first level from the highest through logarithms or powers, in float32.
    assert curve(model).sigma_max == rcm(model)[0] and 0.9 < got[0] <= rcm(model)[0] + 1e-6
    # Computes a timestep from the highest level and goes back from it to a level, as on every flow model of ComfyUI.
    if scheduler == "sgm_uniform":
        assert torch.allclose(got, rcm(model), rtol=0, atol=0.005)


def test_a_part_of_a_run_is_on_the_curve_too(model):
    """denoise below 1 runs the last steps of a longer schedule."""
    half = BasicScheduler.execute(model, "simple", 4, 0.5)[0]
    assert torch.equal(half, rcm(model, 8)[-5:])


@pytest.mark.parametrize("step", range(4))
def test_a_share_of_the_run_is_the_noise_level_of_its_step(model, step):
    """Ranges in conditioning, hooks and other nodes begin and end where a step does."""
    assert curve(model).percent_to_sigma(step / 4) == (rcm(model)[step].item() if step else 1.0)
    assert curve(model).percent_to_sigma(1.0) == 0.0


@pytest.mark.parametrize("node,scale", [(ModelSamplingSD3().patch, 1000), (ModelSamplingAuraFlow().patch_aura, 1.0)])
def test_a_shift_node_takes_the_schedule_over(model, node, scale):
    stock = comfy.model_sampling.ModelSamplingDiscreteFlow()
    stock.set_parameters(shift=3.0, multiplier=scale)
    assert torch.equal(curve(node(model, 3.0)[0]).sigmas, stock.sigmas)


def test_a_node_that_rebuilds_the_sampling_keeps_the_curve(model):
    (patched,) = ModelNoiseScale().patch(model, 2.0)
    assert curve(patched) is not curve(model) and curve(patched).noise_scale == 2.0
    assert torch.equal(levels(patched), rcm(model))
    curve(patched).set_parameters(shift=3.0)
    assert torch.equal(curve(patched).sigmas, curve(ModelSamplingSD3().patch(model, 3.0)[0]).sigmas)


def test_other_models_keep_comfyui_s_schedule(tmp_path):
    # LingBot first: its shift must not stay in ComfyUI's class.
    for name, tensors, shift in (
        ("lingbot", lingbot.state_dict(91, layers=1), 10.0),
        ("wan", checkpoints.stock(11), 8.0),
    ):
        other = load_model(str(checkpoints.write_safetensors(tmp_path / f"{name}.safetensors", tensors)))
        assert torch.equal(curve(other).sigmas, curve(ModelSamplingSD3().patch(other, shift)[0]).sigmas)
        assert curve(other).shift == shift and curve(other).percent_to_sigma(0.5) == shift / (1 + shift)


def test_euler_is_ode(model):
    assert relative_error(k_sampled(model), ours(model, "ode")) <= ROUNDING


def test_lcm_is_sde_but_for_its_noise(model):
    expected = ours(model, "sde")
    noise = NoiseStream(SEED, SHAPE, torch.device("cpu"))
    noise.draw()  # the initial noise
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(model), prompt(model))
    sampler = comfy.samplers.ksampler("lcm", {"noise_sampler": lambda *_: noise.draw()})
    got = SamplerCustomAdvanced.execute(Noise_RandomNoise(SEED), guider, sampler, levels(model), empty())
    assert relative_error(got[0]["samples"], expected) <= ROUNDING
    assert relative_error(k_sampled(model, "lcm"), expected) > 0.1  # ComfyUI draws its own


def test_two_stock_samplers_are_the_two_experts(experts):
    latent = empty()
    for expert, first, last in zip(experts, (0, 2), (2, 10000), strict=True):
        given, noise = prompt(expert), "disable" if first else "enable"
        settings = SEED, 4, 1.0, "euler", "simple", given, given
        (latent,) = nodes.KSamplerAdvanced().sample(expert, noise, *settings, latent, first, last, noise)
    assert relative_error(latent["samples"], ours(experts[0], "ode", experts[1])) <= ROUNDING


def test_the_curve_ends_where_the_schedule_does():
    """A position outside of the schedule is its end."""
    assert sigma_at(1.1, 80) == sigma_at(1, 80) == sigmas(1, 80)[0] and sigma_at(-0.1, 80) == 0

"""Two experts in one run: which runs when, with which patches, guidance and latents; what is held and refused."""

import dataclasses
import gc
import weakref

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import CFGOverride, Noise_EmptyNoise, Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_easycache import EasyCacheNode
from td_pack.tests.support import checkpoints
from td_pack.tests.support.experts import (
    SHAPE,
    Stop,
    given_noise,
    guided,
    image_text,
    latent,
    sample,
    stock_sample,
    text,
    traced_pair,
)
from td_pack.tests.support.models import loaded, relative_error, stock_model
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.guider import ExpertGuider
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.run import needs_low_expert, run_sigmas
from td_pack.turbo_core.host.sampler import make_sampler


@pytest.mark.parametrize(
    "steps,boundary,expected",
    [
        (4, 0.9, "high high low low"),
        (3, 0.9, "high high low"),
        (2, 0.9, "high high"),
        (1, 0.9, "high"),
        (4, 1.0, "low low low low"),
        (4, 0.001, "high high high high"),
        (8, 0.9, "high high high low low low low low"),
    ],
)
def test_each_step_runs_the_expert_of_its_noise_level(experts, steps, boundary, expected):
    high, low, calls = traced_pair(experts)
    sample(high, image_text(), low, steps, boundary)
    assert " ".join(name for name, _ in calls) == expected
    assert needs_low_expert(high, steps, 0, boundary) == ("low" in expected)
    if steps == 4:
        assert [timestep for _, timestep in calls] == [996, 932, 852, 608]


def test_one_run_equals_two_samplers_over_the_halves(experts):
    whole = sample(experts[0], image_text(), experts[1], mode="ode")
    sigmas = run_sigmas(experts[0], 4, 0)
    half = guided(image_text(), sigmas[:3], experts[0])
    parts = guided(image_text(), sigmas[2:], experts[1], noise=Noise_EmptyNoise(), given={"samples": half})
    # Between the halves the latent is divided and multiplied by 1 - sigma in float32.
    assert relative_error(parts, whole) <= 1e-5


def test_a_sampler_that_goes_back_above_the_boundary_switches_back(experts):
    high, low, calls = traced_pair(experts)

    def back_and_forth(model, x, sigmas, extra_args=None, callback=None, disable=None):
        results = [model(x, x.new_tensor([sigma]), **extra_args) for sigma in (0.95, 0.5, 0.95)]
        assert torch.equal(results[0], results[2])
        return x

    guided(image_text(), [0.95, 0.0], high, low, comfy.samplers.KSAMPLER(back_and_forth))
    assert [name for name, _ in calls] == ["high", "low", "high"]


def test_experts_that_are_clones_of_one_file_keep_their_own_patches(t2v):
    """High and low may be one checkpoint with two LoRAs: each step must see its own weights."""
    key = "diffusion_model.blocks.0.ffn.2.weight"
    delta = checkpoints.draw(1, "delta", (256, 512))
    patched = t2v.clone()
    patched.add_patches({key: ("diff", (delta,))}, 0.5)
    before = t2v.model.diffusion_model.blocks[0].ffn[2].weight.clone()
    both = sample(t2v, text(), patched)
    only_plain, only_patched = sample(t2v, text()), sample(patched, text())
    assert not torch.equal(both, only_plain) and not torch.equal(both, only_patched)
    assert torch.equal(sample(patched, text(), t2v, boundary=1.0), only_plain)
    comfy.model_management.unload_all_models()
    assert torch.equal(t2v.model.diffusion_model.blocks[0].ffn[2].weight, before)


def test_guidance_uses_each_expert_s_cfg(experts):
    negative = image_text("other")
    one = sample(experts[0], image_text(), experts[1])
    high, low, calls = traced_pair(experts)
    assert not torch.equal(one, sample(high, image_text(), low, negative=negative, cfg_high=1.0, cfg_low=2.0))
    # cfg 1 skips the negative pass; cfg 2 runs it, in the same call or in a second one.
    assert [name for name, _ in calls][:2] == ["high", "high"] and set(name for name, _ in calls[2:]) == {"low"}
    assert torch.equal(one, sample(experts[0], image_text(), experts[1], negative=negative))


@pytest.mark.parametrize("which", [0, 1])
def test_a_node_that_overrides_cfg_is_heard_on_its_own_expert(experts, which):
    negative = image_text("other")
    expected = sample(experts[0], image_text(), experts[1], negative=negative, **{("cfg_high", "cfg_low")[which]: 3.0})
    overridden = list(experts)
    overridden[which] = CFGOverride.execute(experts[which], 3.0, 0.0, 1.0)[0]
    assert torch.equal(sample(overridden[0], image_text(), overridden[1], negative=negative), expected)
    with pytest.raises(TurboError, match="CFG Override changes it"):
        sample(overridden[0], image_text(), overridden[1])


@pytest.mark.parametrize("which,said", [(0, False), (1, True)])
def test_a_node_that_wraps_a_run_and_misses_the_second_expert_is_named(experts, caplog, which, said):
    wrapped = list(experts)
    wrapped[which] = EasyCacheNode.execute(experts[which], 0.2, 0.1, 0.9, False)[0]
    sample(wrapped[0], image_text(), wrapped[1])
    assert ("no effect on the second expert" in caplog.text) is said


def test_one_model_as_both_experts_has_both_cfgs(t2v):
    """Two loaders of one file give one MODEL: only the noise level tells which expert a step is."""
    given = {"positive": text(), "negative": text(key="other")}
    one, copy = (sample(t2v, low=low, mode="ode", cfg_high=1.0, cfg_low=2.0, **given) for low in (t2v, t2v.clone()))
    assert torch.equal(one, copy)
    assert {name: calls["network"] for name, calls in t2v.model.last_run.calls.items()} == {"high": 2, "low": 2}


def test_other_samplers_do_not_count_into_the_record_of_a_run(t2v):
    sample(t2v, text(), steps=2)
    record = t2v.model.last_run
    stock_sample(t2v, text())
    assert record.calls["sample"]["network"] == 2


@pytest.mark.parametrize("mode", ["sde", "ode"])
@pytest.mark.parametrize("levels,wrong", [((14.6, 0.5, 0.0), "14.6"), ((0.9, 0.0, 0.0), "0"), ((0.9, -0.1), "-0.1")])
def test_noise_levels_of_another_kind_of_model_are_refused(t2v, mode, levels, wrong):
    with pytest.raises(TurboError, match=f"The SIGMAS hold {wrong} where a step begins or ends"):
        guided(text(), levels, t2v, mode=mode)


@pytest.mark.parametrize(
    "takes_image, trained_as, chosen",
    [(False, "", "sde"), (True, "", "ode"), (True, "T2V", "sde"), (False, "I2V", "ode")],
)
def test_mode_auto_is_that_of_the_task_of_the_few_steps(experts, t2v, monkeypatch, takes_image, trained_as, chosen):
    model, positive = (experts[0], image_text()) if takes_image else (t2v, text())
    monkeypatch.setattr(model.model, "spec", dataclasses.replace(model.model.spec, trained_as=trained_as))
    auto, sde, ode = (sample(model, positive, steps=2, mode=mode) for mode in ("auto", "sde", "ode"))
    assert torch.equal(auto, {"sde": sde, "ode": ode}[chosen]) and not torch.equal(sde, ode)


@pytest.mark.parametrize("mode", ["sde", "ode"])
def test_a_batch_equals_single_runs(t2v, mode):
    noise = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(9))

    def result(value):
        noise, given = given_noise(value), latent(len(value))
        return guided(text(), run_sigmas(t2v, 2, 0), t2v, mode=mode, noise=noise, given=given)

    batch = result(noise)
    assert batch.shape[0] == 2
    if mode == "ode":  # re-noise is drawn in the batch's shape, so only the deterministic mode can be compared
        single = torch.cat([result(noise[i : i + 1]) for i in range(2)])
        # Matrix products of another size may be summed in another order.
        assert relative_error(batch, single) <= 1e-5
    else:
        assert not torch.equal(batch[0], batch[1])


def test_masked_out_parts_of_the_latent_are_kept(t2v):
    given = checkpoints.draw(2, "latent", SHAPE)
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[..., :4] = 1
    out = sample(t2v, text(), latent={"samples": given, "noise_mask": mask})
    # Through the latent format's mean and standard deviation and back, in float32.
    assert torch.allclose(out[..., 4:], given[..., 4:], atol=1e-5)
    assert (out[..., :4] - given[..., :4]).abs().mean() > 0.1


@pytest.mark.parametrize("steps,loaded", [(2, False), (4, True)])
def test_an_expert_without_a_step_never_reaches_the_device(experts, steps, loaded):
    comfy.model_management.unload_all_models()
    sample(experts[0], image_text(), experts[1], steps)
    assert any(m.model is experts[1] for m in comfy.model_management.current_loaded_models) == loaded


def test_only_the_low_half_leaves_the_high_expert_alone(experts):
    comfy.model_management.unload_all_models()
    guided(image_text(), run_sigmas(experts[0], 4, 0)[2:], *experts)
    assert [m.model for m in comfy.model_management.current_loaded_models] == [experts[1]]


@pytest.mark.parametrize("expert", ["high", "low"])
def test_an_interrupt_leaves_nothing_behind(experts, expert):
    models = dict(zip(("high", "low"), experts, strict=True))

    def stop(executor, *args, **kwargs):
        raise Stop

    stopped = models[expert].clone()
    stopped.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "stop", stop)
    guider = ExpertGuider(**{**models, expert: stopped})
    guider.set_conds(image_text())
    with pytest.raises(Stop):
        SamplerCustomAdvanced.execute(
            Noise_RandomNoise(3), guider, make_sampler("sde", "cpu"), run_sigmas(experts[0], 4, 0), latent()
        )
    assert guider._run is None
    assert all(model.model.current_patcher is None for model in experts)
    high, low, calls = traced_pair(experts)
    sample(high, image_text(), low)
    assert len(calls) == 4


@pytest.mark.usefixtures("experts")
def test_comfyui_frees_both_experts(folder):
    models = [load_model(str(folder / f"{name}.pth")) for name in ("high", "low")]
    networks = [weakref.ref(model.model) for model in models]
    sample(models[0], image_text(), models[1])
    models.clear()
    gc.collect()
    comfy.model_management.cleanup_models_gc()
    comfy.model_management.free_memory(1e30, comfy.model_management.get_torch_device())
    gc.collect()
    assert [network() for network in networks] == [None, None]


@pytest.mark.parametrize(
    "problem,message",
    [
        ("text width", "The text conditioning is 768 wide and this model takes 4096"),
        ("no text", "The conditioning is empty"),
        ("no image", "This is an image-to-video model and the conditioning holds no image"),
        ("tasks", "The two experts do not belong together, their task differs"),
        ("sizes", "The two experts do not belong together, their number of layers differs"),
        ("boundary", "boundary is 1.5"),
        ("cfg", "needs a negative conditioning"),
        ("other loader", "load it with TurboDiffusionLoader"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_runs(experts, t2v, folder, problem, message):
    def build():
        if problem == "tasks":
            return ExpertGuider(experts[0], t2v)
        if problem == "sizes":
            return ExpertGuider(t2v, loaded(folder / "deep.pth", checkpoints.upstream_state_dict(1, layers=3)))
        if problem == "boundary":
            return ExpertGuider(t2v, boundary=1.5)
        if problem == "other loader":
            return ExpertGuider(stock_model(1))
        guider = ExpertGuider(experts[0] if problem == "no image" else t2v)
        guider.set_conds({"text width": text(768), "no text": []}.get(problem, text()))
        guider.set_cfg(3.0, 1.0)

    with pytest.raises(TurboError, match=message):
        build()


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 4, 2, 8, 8), (1, 48, 2, 8, 8)])
def test_a_latent_that_is_not_wan_s_is_refused(t2v, shape):
    with pytest.raises(TurboError, match="this model needs a 16-channel video latent"):
        sample(t2v, text(), latent={"samples": torch.zeros(shape)})


@pytest.mark.parametrize(
    "channels,frames,message", [(16, 3, "is for 9 frames and the latent has 5"), (32, 2, "another kind")]
)
def test_an_image_of_another_length_or_kind_is_refused(experts, channels, frames, message):
    image = torch.zeros(1, channels, frames, *SHAPE[3:])
    given = image_text(concat_latent_image=image)
    for sampled in (sample, stock_sample):
        with pytest.raises(TurboError, match=message):
            sampled(experts[0], given)

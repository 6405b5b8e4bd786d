"""What two experts hold: only what a run needs is loaded, and nothing is left of an interrupted or a forgotten one."""

import gc
import weakref

import comfy.model_management
import comfy.samplers
import pytest
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from td_pack.tests.support.experts import Stop, guided, image_text, latent, sample, traced_pair
from td_pack.turbo_core.host.guider import ExpertGuider
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.run import run_sigmas
from td_pack.turbo_core.host.sampler import make_sampler


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

"""Many steps with guidance on two experts, as Wan 2.2 and LingBot-World are run: stock sampler and scheduler, our
guider."""

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_EmptyNoise, Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from td_pack.tests.support import lingbot
from td_pack.tests.support.experts import given_noise, image_text
from td_pack.tests.support.models import loaded, relative_error
from td_pack.turbo_core.host.conditioning import CAMERA_KEY
from td_pack.turbo_core.host.guider import ExpertGuider
from td_pack.turbo_core.sampling.schedule import split

SHAPE = (1, 16, 2, 4, 6)
BOUNDARY, CFG = 0.947, (3.0, 2.0)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lingbot")
    return [loaded(folder / f"{seed}.safetensors", lingbot.state_dict(seed, layers=1)) for seed in (91, 92)]


def shifted(model, shift: float):
    return ModelSamplingSD3().patch(model, shift)[0]


def sigmas(model, steps: int) -> torch.Tensor:
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def prompts() -> tuple[list, list]:
    camera = lingbot.camera_of(length=5, ease="linear", width=48, height=32)
    return tuple(image_text(key, SHAPE, **{CAMERA_KEY: camera}) for key in ("fox", "blurry"))


def guided(expert, cfg: float) -> comfy.samplers.CFGGuider:
    """ComfyUI's own guider on one expert."""
    guider = comfy.samplers.CFGGuider(expert)
    guider.set_conds(*prompts())
    guider.set_cfg(cfg)
    return guider


def both(experts, kind=ExpertGuider, boundary: float = BOUNDARY) -> ExpertGuider:
    guider = kind(*experts, boundary)
    guider.set_conds(*prompts())
    guider.set_cfg(*CFG)
    return guider


def sampled(guider, levels: torch.Tensor, sampler: str = "euler", noise=None, latent=None) -> torch.Tensor:
    given = {"samples": torch.zeros(SHAPE) if latent is None else latent}
    result = SamplerCustomAdvanced.execute(
        noise or Noise_RandomNoise(3), guider, comfy.samplers.sampler_object(sampler), levels, given
    )
    return result.args[0]["samples"]


# (steps, shift, steps on the high expert) as upstream's scheduler and boundary give them
UPSTREAM = [(70, 10, 26), (40, 10, 15), (40, 5, 9), (20, 10, 8), (8, 10, 3), (4, 10, 2)]


@pytest.mark.parametrize("steps,shift,high", UPSTREAM)
def test_the_switch_compares_the_shifted_noise_level_as_upstream(experts, steps, shift, high):
    levels = sigmas(shifted(experts[0], shift), steps)
    assert len(split(levels, BOUNDARY)[0]) == high + 1


def test_without_a_shift_node_lingbot_s_own_is_used(experts):
    assert torch.equal(sigmas(experts[0], 20), sigmas(shifted(experts[0], 10.0), 20))


@pytest.mark.parametrize("sampler", ["uni_pc", "uni_pc_bh2", "euler"])
def test_one_expert_with_guidance_is_comfyui_s_own_guider(experts, sampler):
    levels = sigmas(experts[0], 4)
    for expert, cfg, boundary in ((experts[0], CFG[0], 0.001), (experts[1], CFG[1], 1.0)):
        if boundary == 1.0:
            levels = levels[1:]  # a noise level of 1 is not below any boundary
        theirs = sampled(guided(expert, cfg), levels, sampler)
        assert torch.equal(sampled(both(experts, boundary=boundary), levels, sampler), theirs)


def test_two_experts_are_two_stock_samplers_on_the_halves(experts):
    levels = sigmas(experts[0], 6)
    high, low = split(levels, BOUNDARY)
    assert len(high) > 1 and len(low) > 1
    first = sampled(guided(experts[0], CFG[0]), high)
    second = sampled(guided(experts[1], CFG[1]), low, noise=Noise_EmptyNoise(), latent=first)
    assert relative_error(sampled(both(experts), levels), second) <= 1e-5


class Recording(ExpertGuider):
    """Keeps every prediction of the run."""

    def predict_noise(self, x, timestep, *args, **kwargs):
        predicted = super().predict_noise(x, timestep, *args, **kwargs)
        self.seen = [*getattr(self, "seen", []), (x.clone(), float(timestep.max()), predicted.clone())]
        return predicted


def test_every_prediction_of_unipc_is_the_right_expert_s(experts):
    """UniPC remembers earlier steps, so the run cannot be cut in two: each prediction is compared with a stock
    sampler's single step from the same point to zero, which is the prediction."""
    guider = both(experts, Recording)
    sampled(guider, sigmas(experts[0], 5), "uni_pc")
    ran_low = [sigma < BOUNDARY for _, sigma, _ in guider.seen]
    assert len(ran_low) >= 5 and ran_low == sorted(ran_low) and {False, True} == set(ran_low)
    latent_format = experts[0].model.latent_format
    for (x, sigma, predicted), low in zip(guider.seen, ran_low, strict=True):
        stock = guided(experts[low], CFG[low])
        start = given_noise(x / sigma)  # the sampler starts at x
        expected = sampled(stock, torch.tensor([sigma, 0.0]), noise=start)
        assert relative_error(latent_format.process_out(predicted), expected) <= 1e-5

"""Run-time LoRA on int8 and float models: exact where it matters, gone when it is removed, each clone its own."""

import comfy.model_management
import comfy.sd
import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import relative_error
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.run import run

SHAPE = (1, 16, 3, 16, 16)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m")
    return {
        int8: str(
            checkpoints.write_pth(folder / f"{int8}.pth", checkpoints.upstream_state_dict(41, sla=True, int8=int8))
        )
        for int8 in (False, True)
    }


@pytest.fixture
def quantised(paths):
    return load_model(paths[True])


def sample(model, low=None) -> torch.Tensor:
    positive = [[checkpoints.draw(1, "text", (1, 8, 4096)), {}]]
    return run(model, positive, {"samples": torch.zeros(SHAPE)}, 3, 1, 0, 0.9, "ode", "cpu", low)["samples"]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.model.diffusion_model.state_dict().items()}


def small(scale: float) -> dict[str, torch.Tensor]:
    """The test LoRA with its down matrices scaled."""
    return {key: value * scale if "down" in key else value for key, value in checkpoints.lora("kohya").items()}


@pytest.mark.parametrize("scale", [0.03, 1.0])
def test_a_branch_is_closer_to_the_float_layer_than_requantising(quantised, scale):
    """Per layer, against x (W + up down)^T in float64 with W the dequantised weight: what the LoRA is meant to do."""
    lora = small(scale)
    down, up = (next(v for k, v in lora.items() if "ffn_2" in k and part in k) for part in ("down", "up"))
    layer = quantised.model.diffusion_model.blocks[1].ffn[2]
    weight = layer.weight.dequantize()
    x = checkpoints.draw(3, "x", (1, 192, 512))
    change = x.double() @ (up.double() @ down.double()).T  # what the LoRA adds
    plain = layer(x)

    def error(model) -> float:
        model.patch_model()
        added = layer(x) - plain
        model.unpatch_model()
        return relative_error(added, change)

    branch, found = with_lora(quantised, "test.safetensors", lora, 1.0)
    stock, _ = comfy.sd.load_lora_for_models(quantised, None, lora, 1.0, 0)
    assert len(found.layers) == 3 and weight.shape == (256, 512)
    # The branch adds a float32 product; requantising rounds the change to the weight's own steps.
    assert error(branch) <= 1e-5
    assert error(stock) > 100 * error(branch)


def test_the_int8_path_runs_and_nothing_is_requantised(quantised):
    plain, before = sample(quantised), weights(quantised)
    patched, _ = with_lora(quantised, "test.safetensors", checkpoints.lora("kohya"), 0.8)
    calls = patched.model.calls
    assert not torch.equal(sample(patched), plain)
    assert (calls["int8 linear"], calls["float linear"]) == (20, 0)
    loaded = weights(quantised)  # while the patched clone is loaded
    quantised_names = [name for name in before if name.endswith("weight_scale")]
    assert len(quantised_names) == 20
    for name in quantised_names:
        assert torch.equal(loaded[name], before[name])
        codes = name.removesuffix("_scale")
        assert torch.equal(loaded[codes], before[codes])
    comfy.model_management.unload_all_models()
    after = weights(quantised)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(sample(quantised), plain)


def test_offloaded_it_gives_the_same(quantised):
    patched, _ = with_lora(quantised, "test.safetensors", checkpoints.lora("kohya"), 0.8)
    x, context, sigma = (
        checkpoints.draw(2, "x", SHAPE),
        checkpoints.draw(1, "text", (1, 8, 4096)),
        torch.tensor([0.98765]),
    )
    outputs = []
    for options in ({}, {"lowvram_model_memory": 1}):
        clone = patched.clone()
        clone.patch_model(device_to=torch.device("cpu"), **options)
        clone.model.calls.clear()
        outputs.append(clone.model.apply_model(x, sigma, c_crossattn=context))
        assert clone.model.calls["float linear"] == 0
        clone.unpatch_model()
    # proj_l, which is float, is patched on the fly when it is offloaded, in another order.
    assert relative_error(*outputs) <= 1e-5


@pytest.mark.parametrize("int8", [False, True])
def test_strength_stacking_and_clones(paths, int8):
    model = load_model(paths[int8])
    plain = sample(model)
    lora = checkpoints.lora("kohya")
    whole = sample(with_lora(model, "test.safetensors", lora, 1.0)[0])
    assert torch.equal(sample(with_lora(model, "test.safetensors", lora, 0.0)[0]), plain)
    half, _ = with_lora(model, "test.safetensors", lora, 0.5)
    twice, _ = with_lora(half, "test.safetensors", lora, 0.5)
    # 0.5 + 0.5 in another order of float32 sums; int8 activations may flip a code after that.
    assert relative_error(sample(twice), whole) <= (1e-2 if int8 else 1e-5)
    assert not torch.equal(sample(half), whole)
    assert torch.equal(sample(model), plain)
    removed, _ = with_lora(with_lora(model, "test.safetensors", lora, 1.0)[0], "test.safetensors", lora, -1.0)
    assert relative_error(sample(removed), plain) <= (1e-2 if int8 else 1e-5)


def test_a_linear_s_lora_written_as_a_1x1_convolution_is_the_same(quantised):
    tensors = checkpoints.lora("kohya")
    as_convolution = {key: value[..., None, None].contiguous() for key, value in tensors.items()}
    plain, convolution = (sample(with_lora(quantised, "test", given, 1.0)[0]) for given in (tensors, as_convolution))
    assert torch.equal(plain, convolution)


def test_a_model_is_not_saved_without_its_lora(quantised, tmp_path):
    patched, _ = with_lora(quantised, "test.safetensors", checkpoints.lora("kohya"), 1.0)
    with pytest.raises(TurboError, match="merge the LoRA into the file with TurboDiffusionConvert"):
        comfy.sd.save_checkpoint(str(tmp_path / "patched.safetensors"), patched)
    assert not list(tmp_path.iterdir())
    comfy.sd.save_checkpoint(str(tmp_path / "plain.safetensors"), quantised)


def test_each_expert_has_its_own(quantised, paths):
    low = load_model(paths[True])
    patched, _ = with_lora(low, "test.safetensors", checkpoints.lora("kohya"), 1.0)
    calls = []
    for model, expert in ((quantised, None), (quantised, patched)):
        positive = [[checkpoints.draw(1, "text", (1, 8, 4096)), {}]]
        calls.append(
            run(model, positive, {"samples": torch.zeros(SHAPE)}, 3, 4, 0, 0.9, "ode", "cpu", expert)["samples"]
        )
    assert not torch.equal(*calls)
    assert all(not linear.branches for linear in (quantised.model.diffusion_model.blocks[0].self_attn.q,))


def test_a_lora_for_another_model_is_refused(quantised):
    with pytest.raises(TurboError, match="changes no layer"):
        with_lora(quantised, "test.safetensors", {"lora_unet_input_blocks_1.lora_down.weight": torch.ones(4, 4)}, 1.0)

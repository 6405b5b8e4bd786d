"""LoRAs on int8 and float models: exact, removed without a trace, each clone its own, and listed; hooks on quantized
weights refused."""

import comfy.hooks
import comfy.model_management
import comfy.sd
import pytest
import torch
from td_pack.tests.support import checkpoints, experts, lingbot
from td_pack.tests.support.models import relative_error, same, sample, step, weights
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.status import report

LORA = checkpoints.lora("kohya")


@pytest.fixture(scope="module")
def paths(folder):
    return {
        int8: str(
            checkpoints.write_pth(folder / f"{int8}.pth", checkpoints.upstream_state_dict(41, sla=True, int8=int8))
        )
        for int8 in (False, True)
    }


@pytest.fixture
def quantized(paths):
    return load_model(paths[True])


def patched(model, strength: float = 1.0, tensors=LORA, name: str = "test.safetensors"):
    return with_lora(model, name, tensors, strength)[0]


@pytest.mark.parametrize("scale", [0.03, 1.0])
def test_a_side_path_is_closer_to_the_float_layer_than_requantizing(quantized, scale):
    """Per layer, against x (W + up down)^T in float64 with W the dequantized weight: what the LoRA is meant to do."""
    lora = {key: value * scale if "down" in key else value for key, value in LORA.items()}
    layer = quantized.model.diffusion_model.blocks[1].ffn[2]
    x = checkpoints.draw(3, "x", (1, 192, 512))
    change = x.double() @ (scale * checkpoints.lora_change("blocks.1.ffn.2").double()).T  # what the LoRA adds
    plain = layer(x)

    def error(model) -> float:
        model.patch_model()
        added = layer(x) - plain
        model.unpatch_model()
        return relative_error(added, change)

    stock, _ = comfy.sd.load_lora_for_models(quantized, None, lora, 1.0, 0)
    beside, found = with_lora(quantized, "test.safetensors", lora, 1.0)
    assert found.report == "3 of 3 layers"
    # The side path adds a float32 product; requantizing rounds the change to the weight's own steps.
    assert error(beside) <= 1e-5
    assert error(stock) > 100 * error(beside)


def test_the_int8_path_runs_and_nothing_is_requantized(quantized):
    plain, before = sample(quantized), weights(quantized)
    changed = patched(quantized, 0.8)
    calls = changed.model.calls
    assert not torch.equal(sample(changed), plain)
    assert (calls["int8 linear"], calls["float linear"]) == (20, 0)
    loaded = weights(quantized)  # while the patched clone is loaded
    scales = [name for name in before if name.endswith("weight_scale")]
    assert len(scales) == 20
    assert all(torch.equal(loaded[k], before[k]) for name in scales for k in (name, name.removesuffix("_scale")))
    comfy.model_management.unload_all_models()
    assert same(weights(quantized), before) and torch.equal(sample(quantized), plain)


@pytest.mark.parametrize("int8", [False, True])
def test_it_does_not_depend_on_the_memory_that_is_free(paths, int8):
    """The weights of the model are as they were, so where they are changes no bit; the matrices are memory that ComfyUI
    manages."""
    model = load_model(paths[int8])
    before, changed = weights(model), patched(model, 0.8)
    assert torch.equal(step(changed), step(changed, lowvram_model_memory=1))
    expected = sample(changed)
    # By another uuid of its patches ComfyUI would unload the weights and load them again.
    assert not changed.patches and changed.patches_uuid == model.patches_uuid and same(weights(model), before)
    (matrices,) = changed.get_nested_additional_models()
    assert matrices.model_size() == sum(value.nbytes for value in LORA.values())
    loaded = [each.model for each in comfy.model_management.current_loaded_models]
    assert any(matrices.is_clone(each) for each in loaded)
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(changed), expected)


def test_every_linear_takes_one_and_is_not_patched(paths):
    """Embeddings, modulation, proj_l and head included; against the stock node on the same float32 model."""
    model = load_model(paths[False])
    layers = {
        name: tuple(layer.weight.shape)
        for name, layer in model.model.diffusion_model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    tensors = checkpoints.lora(rank=2, layers=layers, size=0.1)
    changed = patched(model, tensors=tensors)
    assert len(changed.object_patches) == len(tensors) / 2 == 28 and not changed.patches
    stock, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)
    expected = sample(stock)
    # The order of float32 sums; leaving out the LoRA of one layer changes more.
    assert relative_error(sample(changed), expected) <= 1e-5
    assert relative_error(sample(model), expected) > 0.1


@pytest.mark.parametrize("int8", [False, True])
def test_strength_stacking_and_clones(paths, int8):
    model = load_model(paths[int8])
    plain, whole = sample(model), sample(patched(model))
    assert torch.equal(sample(patched(model, 0.0)), plain)
    half = patched(model, 0.5)
    # 0.5 + 0.5 in another order of float32 sums; int8 activations may flip a code after that.
    tolerance = 1e-2 if int8 else 1e-5
    assert relative_error(sample(patched(half, 0.5)), whole) <= tolerance
    assert not torch.equal(sample(half), whole)
    assert torch.equal(sample(model), plain)
    assert relative_error(sample(patched(patched(model), -1.0)), plain) <= tolerance


def test_a_linear_s_lora_written_as_a_1x1_convolution_is_the_same(quantized):
    as_convolution = {key: value[..., None, None].contiguous() for key, value in LORA.items()}
    plain, convolution = (sample(patched(quantized, tensors=given)) for given in (LORA, as_convolution))
    assert torch.equal(plain, convolution)


@pytest.mark.parametrize("afterwards", [False, True])
def test_a_copy_for_another_device_has_matrices_of_its_own(paths, afterwards):
    """As ComfyUI's Select Model Device and MultiGPU CFG Split make one; the latter also for a LoRA that comes after."""
    model = patched(load_model(paths[True]), 0.5)
    expected = sample(patched(model, 0.5))
    if afterwards:
        model.set_additional_models("multigpu", [model.deepclone_multigpu(model.load_device)])
        changed = patched(model, 0.5)
        changed.match_multigpu_clones()
        (copy,) = changed.get_additional_models_with_key("multigpu")
    else:
        changed = patched(model, 0.5)
        copy = changed.deepclone_multigpu(changed.load_device)
    theirs, own = (
        set(each.get_additional_models_with_key("turbodiffusion_lora")[-1].model) for each in (changed, copy)
    )
    of_layer = copy.get_model_object("diffusion_model.blocks.1.ffn.2.side_paths")
    assert len(of_layer) == 2 and of_layer[1].up in own and not own & theirs
    assert torch.equal(sample(copy), expected)


def test_each_expert_has_its_own(quantized, paths):
    plain, changed = (sample(quantized, 4, expert) for expert in (None, patched(load_model(paths[True]))))
    assert not torch.equal(plain, changed)
    assert not quantized.model.diffusion_model.blocks[0].self_attn.q.side_paths


def test_the_status_report_lists_the_loras_of_the_loaded_clone(quantized):
    comfy.model_management.unload_all_models()  # those of other tests may have LoRAs
    first = patched(quantized, 0.8)
    second = patched(first, 0.0, LORA | {"lora_te.alpha": torch.ones(())}, "second.safetensors")
    listed = [
        "  LoRA test.safetensors at strength 0.8: 3 of 3 layers",
        "  LoRA second.safetensors at strength 0: 3 of 4 layers; 1 of 7 tensors not used: 1 for no layer of this model "
        "(first: lora_te.alpha)",
    ]
    for model, count in ((second, 2), (first, 1), (quantized, 0), (second.clone(disable_dynamic=True), 2)):
        sample(model)
        assert [line.removeprefix("  ") for line in report().splitlines() if " LoRA " in line] == listed[:count]


def hooked(tensors: dict[str, torch.Tensor]) -> list:
    ((context, options),) = experts.text()
    return [[context, options | {"hooks": comfy.hooks.create_hook_lora(tensors, 1.0, 0.0)}]]


def test_a_hook_on_float_weights_is_the_lora_and_leaves_them_as_they_were(t2v):
    tensors = {key: value for key, value in checkpoints.lora("diffusion_model").items() if "proj_l" not in key}
    plain = experts.sample(t2v, experts.text(), steps=2)
    changed, _ = comfy.sd.load_lora_for_models(t2v, None, tensors, 1.0, 0.0)
    expected = experts.sample(changed, experts.text(), steps=2)
    assert relative_error(experts.sample(t2v, hooked(tensors), steps=2), expected) <= 1e-6
    assert relative_error(plain, expected) > 1e-6
    assert torch.equal(experts.sample(t2v, experts.text(), steps=2), plain)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_hook_on_quantized_weights_says_what_to_do_and_leaves_them_as_they_were(folder, paths, kind):
    path = paths[True]
    if kind == "nf4":
        path = checkpoints.write_safetensors(folder / "nf4.safetensors", lingbot.packed(checkpoints.stock(43)))
    model = load_model(str(path))
    plain = sample(model)
    with pytest.raises(TurboError, match="LoRA hooks cannot change int8 or 4-bit weights"):
        experts.sample(model, hooked(checkpoints.lora("diffusion_model")), steps=1)
    assert torch.equal(sample(model), plain)

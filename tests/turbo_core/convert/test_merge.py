"""Merging: a LoRA equals the sum in float, then stored; a delta is base + weight * (turbo - teacher)."""

import json
import re

import pytest
import torch
from td_pack.kernels import dequantize_block, quantize_block
from td_pack.tests.support import checkpoints
from td_pack.tests.support.checkpoints import lora_change
from td_pack.turbo_core.checkpoint.identify import identify
from td_pack.turbo_core.checkpoint.keys import to_comfyui
from td_pack.turbo_core.checkpoint.metadata import METADATA_KEY
from td_pack.turbo_core.checkpoint.read import read_safetensors
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.errors import TurboError

LAYER = "blocks.0.self_attn.q"
Q, PROJ_L = "blocks.0.self_attn.q.weight", "blocks.1.self_attn.attn_op.local_attn.proj_l.weight"


def merged(folder, source, weights="keep", **more):
    """The report and the tensors of a conversion."""
    report = convert(Request(source, folder / "merged.safetensors", weights, overwrite=True, **more))
    return report, read_safetensors(report.path)[0]


@pytest.fixture(scope="module")
def state_dict():
    return checkpoints.upstream_state_dict(3, sla=True)


@pytest.fixture
def lora_file(tmp_path):
    return checkpoints.write_safetensors(tmp_path / "style.safetensors", checkpoints.lora("diffusion_model"))


def test_a_lora_is_added_in_float_and_then_quantized(state_dict, lora_file, tmp_path):
    source = checkpoints.write_pth(tmp_path / "plain.pth", state_dict)
    report, tensors = merged(tmp_path, source, "int8_block", lora=lora_file, lora_strength=0.7)
    codes, scale = quantize_block(state_dict[Q].float() + 0.7 * lora_change(LAYER))
    # The sum is rounded to float32 in one order or the other: a code at a tie may be the next one.
    torch.testing.assert_close(tensors[Q + "_scale"], scale, rtol=1e-6, atol=0)
    apart = (tensors[Q].int() - codes.int()).abs()
    assert apart.max() <= 1 and apart.float().mean() < 1e-3
    assert (tensors[Q].int() - quantize_block(state_dict[Q])[0].int()).abs().max() > 10  # and it did change
    expected = (state_dict[PROJ_L].float() + 0.7 * lora_change(PROJ_L.removesuffix(".weight"))).bfloat16()
    torch.testing.assert_close(tensors[PROJ_L], expected, rtol=1e-2, atol=0)
    untouched = "blocks.0.self_attn.k.weight"
    assert torch.equal(tensors[untouched], quantize_block(state_dict[untouched])[0])
    assert report.notes == ["style.safetensors merged into 3 layers at strength 0.7."]


@pytest.mark.parametrize("style", ["diffusion_model", "kohya"])
def test_keep_stores_what_a_lora_changed_as_it_was(style, state_dict, tmp_path):
    quantized = checkpoints.quantized(state_dict)
    source = checkpoints.write_pth(tmp_path / "quant.pth", quantized)
    path = checkpoints.write_safetensors(tmp_path / "lora.safetensors", checkpoints.lora(style))
    _, tensors = merged(tmp_path, source, lora=path)
    float_weight = dequantize_block(quantized[f"{LAYER}.int8_weight"], quantized[f"{LAYER}.scale"], torch.float32)
    expected = float_weight + lora_change(LAYER)  # of the same numbers as the other style
    assert tensors[Q].dtype == torch.int8
    error = dequantize_block(tensors[Q], tensors[Q + "_scale"], torch.float32) - expected
    half = dequantize_block(torch.ones_like(tensors[Q]), tensors[Q + "_scale"], torch.float32)
    # Half a step of rounding; the largest value of a tile is 128 steps and its code at most 127.
    assert (error.abs() <= half * torch.where(expected >= 127.4 * half, 1.01, 0.501)).all()
    assert torch.equal(tensors["blocks.0.self_attn.k.weight"], quantized["blocks.0.self_attn.k.int8_weight"])


def test_alpha_and_whole_differences_count(state_dict, tmp_path):
    changes = checkpoints.lora("kohya")
    key = "lora_unet_blocks_0_self_attn_q"
    changes |= {f"{key}.alpha": torch.tensor(2.0), f"{key}.diff_b": torch.ones(256), "unrelated": torch.ones(1)}
    path = checkpoints.write_safetensors(tmp_path / "lora.safetensors", changes)
    source = checkpoints.write_pth(tmp_path / "plain.pth", {k: v.float() for k, v in state_dict.items()})
    report, tensors = merged(tmp_path, source, lora=path, lora_strength=0.5)
    product = changes[f"{key}.lora_up.weight"] @ changes[f"{key}.lora_down.weight"]
    torch.testing.assert_close(tensors[Q], state_dict[Q].float() + 0.5 * 2 / 4 * product)
    bias = Q.replace("weight", "bias")
    torch.testing.assert_close(tensors[bias], state_dict[bias].float() + 0.5)
    unused = "1 of 9 tensors not used: 1 in an unknown key style (first: unrelated)"
    assert report.notes[1] == f"lora.safetensors: {unused}."


def test_strength_0_is_the_model_itself(state_dict, lora_file, tmp_path):
    source = checkpoints.write_pth(tmp_path / "quant.pth", checkpoints.quantized(state_dict))
    _, tensors = merged(tmp_path, source, lora=lora_file, lora_strength=0.0)
    expected = to_comfyui(checkpoints.quantized(state_dict))
    assert all(torch.equal(tensors[key], expected[key]) for key in expected)


def test_a_lora_for_nothing_here_says_what_it_holds(state_dict, tmp_path):
    source = checkpoints.write_pth(tmp_path / "plain.pth", state_dict)
    path = checkpoints.write_safetensors(
        tmp_path / "sdxl.safetensors", {"lora_unet_down_blocks_1.lora_up.weight": torch.ones(4, 2)}
    )
    with pytest.raises(
        TurboError, match=r"sdxl.safetensors changes no layer of this model: .*first: lora_unet_down_bl"
    ):
        merged(tmp_path, source, lora=path)
    assert not (tmp_path / "merged.safetensors").exists()


@pytest.mark.parametrize("weights", ["keep", "bf16", "int8_block", "fp8_e4m3fn", "int8_rowwise"])
@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_lora_that_is_no_number_is_named_and_leaves_nothing(weights, factor, state_dict, tmp_path):
    source = checkpoints.write_pth(tmp_path / "plain.pth", state_dict)
    changes = {key: value * factor for key, value in checkpoints.lora("diffusion_model").items()}
    path = checkpoints.write_safetensors(tmp_path / "lora.safetensors", changes)
    with pytest.raises(TurboError, match="would hold NaN or numbers too large for its type"):
        merged(tmp_path, source, weights, lora=path)
    assert not (tmp_path / "merged.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_a_sum_too_large_for_its_type_is_no_infinity_in_the_file(dtype, state_dict, lora_file, tmp_path):
    narrow = {key: value.to(dtype) if value.ndim == 2 else value for key, value in state_dict.items()}
    source = checkpoints.write_safetensors(tmp_path / "narrow.safetensors", narrow)
    with pytest.raises(TurboError, match="too large for its type with what is merged; choose a smaller strength"):
        merged(tmp_path, source, lora=lora_file, lora_strength=1e6)


@pytest.mark.parametrize("name", ["lora_strength", "delta"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_a_strength_that_is_no_number_is_refused(name, value, state_dict, tmp_path):
    source = checkpoints.write_pth(tmp_path / "plain.pth", state_dict)
    with pytest.raises(TurboError, match=re.escape(f"{name} is {value}: give a number")):
        merged(tmp_path, source, **{name: value})


@pytest.mark.parametrize(
    "mark, weight, scale",
    [
        ({"format": "mxfp8"}, torch.float8_e4m3fn, torch.zeros(256, 8, dtype=torch.float8_e8m0fnu)),
        ({"format": "int8_tensorwise", "convrot": True}, torch.int8, torch.ones(256, 1)),
    ],
    ids=["mxfp8", "rotated int8"],
)
def test_a_quantization_without_a_codec_is_copied_but_never_merged_into(
    mark, weight, scale, state_dict, lora_file, tmp_path
):
    marked = state_dict | {
        Q: state_dict[Q].to(weight),
        f"{LAYER}.weight_scale": scale,
        f"{LAYER}.comfy_quant": torch.tensor(list(json.dumps(mark).encode()), dtype=torch.uint8),
    }
    source = checkpoints.write_safetensors(tmp_path / "theirs.safetensors", marked)
    _, tensors = merged(tmp_path, source)
    assert all(
        torch.equal(tensors[key].view(torch.uint8), marked[key].view(torch.uint8))
        for key in (Q, f"{LAYER}.weight_scale")
    )
    with pytest.raises(TurboError, match=f"theirs.safetensors: {Q} is stored as .*, into which nothing can be merged"):
        merged(tmp_path, source, lora=lora_file)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A turbo T2V model with trained attention, its teacher in ComfyUI's names, and an I2V base."""
    folder = tmp_path_factory.mktemp("models")
    turbo = checkpoints.upstream_state_dict(1, sla=True)
    teacher = to_comfyui(checkpoints.upstream_state_dict(2))
    base = checkpoints.upstream_state_dict(5, in_channels=36)
    return {
        "turbo": checkpoints.write_pth(folder / "turbo.pth", turbo),
        "teacher": checkpoints.write_safetensors(folder / "teacher.safetensors", teacher),
        "base": checkpoints.write_pth(folder / "base.pth", base),
        "tensors": (to_comfyui(base), to_comfyui(turbo), teacher),
    }


def test_a_delta_is_added_to_what_all_three_have(models, tmp_path):
    report, tensors = merged(tmp_path, models["turbo"], base=models["base"], teacher=models["teacher"], delta=0.6)
    base, turbo, teacher = models["tensors"]
    own = {"patch_embedding.weight", "patch_embedding.bias"}
    for key in base.keys() - own:
        expected = base[key].float() + 0.6 * (turbo[key].float() - teacher[key].float())
        # One rounding to bfloat16, of a sum whose float32 rounding may differ by its order.
        torch.testing.assert_close(tensors[key], expected.bfloat16(), rtol=2**-7, atol=1e-6)
        assert not torch.equal(tensors[key], base[key])
    assert all(torch.equal(tensors[key], base[key]) for key in own)
    only_turbo = turbo.keys() - base.keys()
    assert tensors.keys() == base.keys() | only_turbo and len(only_turbo) == 4
    assert all(torch.equal(tensors[key], turbo[key]) for key in only_turbo)
    assert report.description == "TurboWan I2V 2 layers of width 256 with SLA"
    assert report.notes == [
        f"{len(base) - 2} tensors of base.pth changed by 0.6 * (turbo.pth - teacher.safetensors).",
        "The patch embedding is the base's own (input channels: 36 in base.pth, 16 in turbo.pth, 16 in "
        "teacher.safetensors).",
        "4 tensors that only turbo.pth has came along: blocks.0.self_attn.attn_op.local_attn.proj_l.weight, "
        "blocks.0.self_attn.attn_op.local_attn.proj_l.bias, blocks.1.self_attn.attn_op.local_attn.proj_l.weight and "
        "1 more.",
    ]
    tensors, metadata = read_safetensors(report.path)
    record = json.loads(metadata[METADATA_KEY])
    assert record["delta"] == 0.6 and set(record["sources"]) == {"model", "base", "teacher"}
    spec = identify("x", tensors, metadata)[0]
    assert spec.turbo and (spec.task, spec.trained_as, spec.sigma_max) == ("I2V", "T2V", 80)


def test_what_a_fine_tune_changed_leaves_the_few_steps_of_the_base(models, tmp_path):
    """A stock I2V model stands for the fine-tune and for its teacher."""
    made, _ = merged(tmp_path, models["turbo"], base=models["base"], teacher=models["teacher"])
    stock = checkpoints.write_safetensors(tmp_path / "stock.safetensors", checkpoints.stock(4, in_channels=36))
    report = convert(Request(stock, tmp_path / "tuned.safetensors", base=made.path, teacher=stock))
    assert identify("x", *read_safetensors(report.path))[0].trained_as == "T2V"


def test_a_delta_of_quantized_models_is_of_their_float_values(models, tmp_path):
    base, turbo, teacher = models["tensors"]
    quantized = checkpoints.quantized(checkpoints.upstream_state_dict(1, sla=True))
    source = checkpoints.write_pth(tmp_path / "turbo-quant.pth", quantized)
    _, tensors = merged(tmp_path, source, "bf16", base=models["base"], teacher=models["teacher"])
    values = dequantize_block(quantized[f"{LAYER}.int8_weight"], quantized[f"{LAYER}.scale"], torch.float32)
    expected = base[Q].float() + values - teacher[Q].float()
    torch.testing.assert_close(tensors[Q], expected.bfloat16(), rtol=2**-7, atol=1e-6)


def test_a_lora_goes_on_top_of_a_delta(models, lora_file, tmp_path):
    _, without = merged(tmp_path, models["turbo"], base=models["base"], teacher=models["teacher"])
    without = without[Q].float()
    _, tensors = merged(tmp_path, models["turbo"], base=models["base"], teacher=models["teacher"], lora=lora_file)
    # Two roundings to bfloat16 against one.
    torch.testing.assert_close(tensors[Q].float(), without + lora_change(LAYER), rtol=2**-6, atol=2**-7)


SIZES = r"ffn.0.weight is \[512, 256\] in base.pth, \[512, 256\] in turbo.pth, \[640, 256\] in other.pth: a delta"
DEPTHS = r"blocks.1.modulation \(and \d+ more\) of base.pth is in only one of turbo.pth"


@pytest.mark.parametrize("sizes, message", [({"ffn_dim": 640}, SIZES), ({"layers": 1}, DEPTHS)], ids=["width", "depth"])
def test_models_of_several_sizes_are_refused(sizes, message, models, tmp_path):
    teacher = checkpoints.write_pth(tmp_path / "other.pth", checkpoints.upstream_state_dict(2, **sizes))
    with pytest.raises(TurboError, match=message):
        merged(tmp_path, models["turbo"], base=models["base"], teacher=teacher)


@pytest.mark.parametrize("given", ["base", "teacher"])
def test_a_delta_needs_both(given, models, tmp_path):
    with pytest.raises(TurboError, match="A delta needs both base_name"):
        merged(tmp_path, models["turbo"], **{given: models[given]})

"""Every kind of weights, from every kind of source: what is in the file, and that it loads and computes the same."""

import hashlib
import json

import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from td_pack.kernels import dequantize_block, quantize_block
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import forward, relative_error
from td_pack.turbo_core.checkpoint.identify import identify
from td_pack.turbo_core.checkpoint.keys import to_comfyui
from td_pack.turbo_core.checkpoint.metadata import METADATA_KEY
from td_pack.turbo_core.checkpoint.read import read_safetensors
from td_pack.turbo_core.convert import codec
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.errors import CheckpointError
from td_pack.turbo_core.host.load import load_model

LINEARS = 2 * (4 + 4 + 2)  # of two blocks


def stock(path):
    return comfy.sd.load_diffusion_model(str(path), {"dtype": torch.float32})


def converted(source, weights: str, name: str = "", **more):
    path = source.with_name(f"{name or weights}.safetensors")
    convert(Request(source, path, weights, **more))
    return path


@pytest.fixture(scope="module")
def state_dict():
    """Ragged: the feed-forward width is no multiple of a tile."""
    return checkpoints.upstream_state_dict(3, ffn_dim=300, sla=True)


@pytest.fixture(scope="module")
def plain(state_dict, tmp_path_factory):
    return checkpoints.write_pth(tmp_path_factory.mktemp("plain") / "plain.pth", state_dict)


@pytest.fixture(scope="module")
def quantized(state_dict, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    return checkpoints.write_pth(folder / "quantized.pth", checkpoints.quantized(state_dict), wrap=True)


@pytest.mark.parametrize("name", ["plain", "quantized"])
def test_keep_gives_the_same_tensors_and_the_same_bits_of_output(name, request):
    source = request.getfixturevalue(name)
    path = converted(source, "keep")
    tensors, _ = read_safetensors(path)
    expected = to_comfyui(torch.load(source, weights_only=True).get("state_dict") or torch.load(source))
    assert tensors.keys() == expected.keys()
    assert all(
        tensors[key].dtype == expected[key].dtype and torch.equal(tensors[key], expected[key]) for key in tensors
    )
    # The same numbers elsewhere in memory: the matrix library may sum float products in another order.
    error = relative_error(forward(load_model(str(path))), forward(load_model(str(source))))
    assert error == 0 if name == "quantized" else error <= 1e-6


def test_int8_blocks_are_the_quantizer_s_codes_and_scales(plain, state_dict):
    tensors, _ = read_safetensors(converted(plain, "int8_block"))
    expected = to_comfyui(checkpoints.quantized(state_dict))
    assert tensors.keys() == expected.keys()
    codes = [key for key in tensors if tensors[key].dtype == torch.int8]
    assert len(codes) == LINEARS and not any("proj_l" in key for key in codes)
    for key in codes:
        whole, scale = quantize_block(state_dict[key])
        assert torch.equal(tensors[key], whole), key
        assert torch.equal(tensors[key + "_scale"], scale) and torch.equal(scale, expected[key + "_scale"]), key
        # Upstream multiplies by 128 / amax, the recipe divides by amax: they part only where a value is half way
        # between codes.
        apart = tensors[key] != expected[key]
        steps = state_dict[key].double() / dequantize_block(torch.ones_like(whole), scale, torch.float64)
        assert (steps[apart].frac().abs() - 0.5).abs().lt(1e-4).all() and apart.float().mean() < 1e-3


def test_a_source_in_small_parts_gives_the_same_file(plain, quantized, monkeypatch):
    cases = [
        (plain, "int8_block"),
        (plain, "fp8_e4m3fn"),
        (plain, "int8_rowwise"),
        (quantized, "keep"),
        (quantized, "bf16"),
    ]
    whole = [converted(*case, f"whole-{case[1]}").read_bytes() for case in cases]
    monkeypatch.setattr(codec, "SLAB_ELEMENTS", 1)  # one tile of rows at a time
    for case, content in zip(cases, whole, strict=True):
        data = converted(*case, f"parts-{case[1]}").read_bytes()
        assert hashlib.sha256(data).digest() == hashlib.sha256(content).digest(), case[1]


def test_int8_is_dequantized_once(quantized):
    tensors, _ = read_safetensors(converted(quantized, "bf16"))
    source = torch.load(quantized, weights_only=True)["state_dict"]
    layer = "blocks.1.ffn.0"
    expected = dequantize_block(source[f"{layer}.int8_weight"], source[f"{layer}.scale"], torch.float32)
    assert torch.equal(tensors[f"{layer}.weight"], expected.bfloat16())
    assert not any("scale" in key or value.dtype == torch.int8 for key, value in tensors.items())


# Against the bf16 file by the same loader, each network with random weights, whose errors do not average out as trained
# ones' do. fp8 rounds a weight by up to 1/16 of itself, 2.6 % in the mean square; int8 by half of amax/127 of its row,
# here 0.7 %, and the activations likewise. Two blocks add four such errors in a row.
STOCK = {"bf16": (0, None), "fp8_e4m3fn": (6e-2, "float8_e4m3fn"), "int8_rowwise": (3e-2, "int8_tensorwise")}


@pytest.mark.parametrize("weights", STOCK)
@pytest.mark.parametrize("int8_source", [False, True])
def test_comfyui_s_own_formats_load_in_its_own_loader_and_in_ours(weights, int8_source, tmp_path):
    tolerance, kind = STOCK[weights]
    dense = checkpoints.upstream_state_dict(4, ffn_dim=384)
    source = checkpoints.write_pth(tmp_path / "dense.pth", checkpoints.quantized(dense) if int8_source else dense)
    path = converted(source, weights)
    reference = forward(stock(converted(source, "bf16", "reference")))
    theirs, ours = stock(path), load_model(str(path), "fp32")
    for model in (theirs, ours):
        modules = model.model.diffusion_model.named_modules()
        formats = {name: module.quant_format for name, module in modules if getattr(module, "quant_format", None)}
        assert set(formats.values()) == ({kind} if kind else set())
        if kind:
            assert len(formats) == LINEARS and all(name.startswith("blocks.") for name in formats)
            weight = model.model.diffusion_model.blocks[0].ffn[0].weight
            assert isinstance(weight, QuantizedTensor)
        assert relative_error(forward(model), reference) <= tolerance + (0 if model is theirs else 5e-3)
    if kind:
        assert relative_error(forward(theirs), reference) > 1e-4  # it is quantized indeed
    assert ours.model.spec.turbo


@pytest.mark.parametrize("kind", ["fp8_e4m3fn", "int8_rowwise"])
def test_comfyui_s_own_formats_are_sources_too(kind, plain, tmp_path):
    packed = converted(plain, kind, f"{kind}-again")
    bf16, _ = read_safetensors(converted(packed, "bf16", f"{kind}-bf16"))
    tensors, _ = read_safetensors(packed)
    kept, _ = read_safetensors(converted(packed, "keep", f"{kind}-kept"))
    assert kept.keys() == tensors.keys() and all(torch.equal(kept[key], tensors[key]) for key in tensors)
    key = "blocks.0.self_attn.q.weight"
    assert torch.equal(bf16[key], (tensors[key].float() * tensors[key + "_scale"]).bfloat16())
    assert tensors[key].float().abs().max() == {"fp8_e4m3fn": 448, "int8_rowwise": 127}[kind]


def test_the_metadata_says_from_what_and_how(plain):
    path = converted(plain, "fp8_e4m3fn", "recorded")
    record = json.loads(read_safetensors(path)[1][METADATA_KEY])
    assert (record["weights"], record["turbo"], record["version"]) == ("fp8_e4m3fn", True, "1.0.0")
    data = plain.read_bytes()
    expected = {"name": plain.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert record["sources"] == {"model": expected}


def test_a_stock_wan_file_stays_one(tmp_path):
    state_dict = to_comfyui(checkpoints.upstream_state_dict(4))
    source = checkpoints.write_safetensors(tmp_path / "wan.safetensors", state_dict, {"modelspec.title": "Wan"})
    path = converted(source, "fp8_e4m3fn")
    tensors, metadata = read_safetensors(path)
    assert not identify("wan", tensors, metadata)[0].turbo
    assert identify("wan", tensors, {METADATA_KEY: "{}"})[0].turbo
    assert metadata["modelspec.title"] == "Wan"


def test_a_width_of_text_that_comfyui_does_not_guess_is_recorded(tmp_path):
    state_dict = checkpoints.upstream_state_dict(4)
    state_dict["text_embedding.0.weight"] = state_dict["text_embedding.0.weight"][:, :64].contiguous()
    path = converted(checkpoints.write_pth(tmp_path / "narrow.pth", state_dict), "keep")
    assert stock(path).model.diffusion_model.text_embedding[0].in_features == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights", ["int8_block", "fp8_e4m3fn", "int8_rowwise"])
def test_a_weight_that_is_no_number_is_named(weights, value, state_dict, tmp_path):
    bad = dict(state_dict)
    bad["blocks.1.ffn.2.weight"] = bad["blocks.1.ffn.2.weight"].clone()
    bad["blocks.1.ffn.2.weight"][7, 9] = value
    source = checkpoints.write_pth(tmp_path / "bad.pth", bad)
    with pytest.raises(CheckpointError, match=r"bad.pth: blocks.1.ffn.2.weight holds values that are NaN or infinite"):
        converted(source, weights)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_an_old_scaled_fp8_file_is_refused(state_dict, tmp_path):
    old = state_dict | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    source = checkpoints.write_safetensors(tmp_path / "old.safetensors", old)
    with pytest.raises(CheckpointError, match="older form of ComfyUI's, which cannot be converted; use the bf16 file"):
        converted(source, "bf16")


def test_parameters_and_types_of_no_use_here_are_copied(state_dict, tmp_path):
    odd = state_dict | {"blocks.0.ffn.2.weight": state_dict["blocks.0.ffn.2.weight"].to(torch.float8_e4m3fnuz)}
    parameters = {key: torch.nn.Parameter(value) for key, value in odd.items()}
    source = checkpoints.write_pth(tmp_path / "parameters.pth", parameters)
    tensors, _ = read_safetensors(converted(source, "keep"))
    expected = to_comfyui(odd)
    assert all(tensors[key].dtype == value.dtype for key, value in expected.items())
    assert all(torch.equal(tensors[key].float(), value.float()) for key, value in expected.items())
    int8, _ = read_safetensors(converted(source, "int8_block"))
    assert int8["blocks.0.ffn.0.weight"].dtype == torch.int8

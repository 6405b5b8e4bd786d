"""Int8 checkpoints as ComfyUI models: what each linear computes. Int8 and 4-bit ones offloaded, saved and compiled."""

import itertools

import comfy.model_management
import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_model_merging import ModelMergeSimple
from td_pack.kernels import dispatch
from td_pack.kernels.backends import BACKENDS
from td_pack.kernels.int8.reference import int8_linear
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.models import (
    SHAPE,
    compiled_by,
    loaded,
    only_comfyui_breaks_graphs,
    relative_error,
    same,
    sample,
    step,
    weights,
)
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.quant import ACTIVATIONS, LAYOUT, TurboDiffusionBlockINT8Layout, is_block_int8

LINEARS = 10  # per block: q, k, v, o of two attentions, two of the feed-forward part


@pytest.fixture(scope="module")
def state_dict():
    # 300 is no multiple of the tile, so that ragged tiles are in every test.
    return checkpoints.upstream_state_dict(41, ffn_dim=300, sla=True, int8=True)


@pytest.fixture
def model(state_dict, tmp_path):
    return loaded(tmp_path / "quant.pth", state_dict)


@pytest.fixture
def upstream(state_dict, tmp_path):
    """The same with upstream's activations."""
    return loaded(tmp_path / "upstream.pth", state_dict, activations="upstream")


def test_every_linear_of_a_block_is_int8_and_nothing_else(model):
    quantized = {name for name, parameter in model.model.named_parameters() if isinstance(parameter, QuantizedTensor)}
    blocks = {
        name
        for name, parameter in model.model.named_parameters()
        if ".blocks." in name and name.endswith(".weight") and "norm" not in name and "proj_l" not in name
    }
    assert quantized == blocks and len(quantized) == 2 * LINEARS
    assert all(is_block_int8(model.get_model_object(name)) for name in quantized)
    assert not list(model.model.diffusion_model.named_buffers())


@pytest.mark.parametrize("activations", ACTIVATIONS)
def test_every_linear_multiplies_in_int8_on_what_it_is_given(activations, model, upstream, state_dict):
    """Recorded inputs of a real forward pass, against the definition, which tests/kernels/test_int8.py proves."""
    model = {"fine": model, "upstream": upstream}[activations]
    recorded = []

    def record(module, args, output):
        recorded.append((module, args[0], output))

    names = {
        module: name
        for name, module in model.model.diffusion_model.named_modules()
        if is_block_int8(getattr(module, "weight", None))
    }
    handles = [module.register_forward_hook(record) for module in names]
    x, context = checkpoints.draw(2, "x", SHAPE), checkpoints.draw(1, "text", (2, 8, 4096))
    model.model.diffusion_model(x.repeat(2, 1, 1, 1, 1), torch.tensor([988.0, 932.0]), context=context)
    for handle in handles:
        handle.remove()
    assert len(recorded) == 2 * LINEARS
    for module, given, output in recorded:
        name = names[module]
        weight = [state_dict[f"{name}.{kind}"] for kind in ("int8_weight", "scale", "bias")]
        expected = int8_linear(given, *weight, activation={"fine": "group", "upstream": "block"}[activations])
        # The golden `ops` tolerance; float32 accumulation over at most three tiles.
        assert relative_error(output, expected) <= 1e-5, name


def test_where_int8_is_slower_every_linear_multiplies_in_float(model, upstream, monkeypatch):
    """As on a GPU without a fast int8 product: weights stay int8, activations are not quantized, and the counts say
    so."""
    int8 = sample(model)
    rows = (row._replace(unavailable=lambda device: None) if row.name == "dequantized" else row for row in BACKENDS)
    monkeypatch.setattr(dispatch, "BACKENDS", tuple(rows))
    try:
        model.model.calls.clear()
        in_float = sample(model)
    finally:
        monkeypatch.undo()
    assert (model.model.calls["int8 linear"], model.model.calls["float linear"]) == (0, 2 * LINEARS)
    fine, coarse = (relative_error(in_float, each) for each in (int8, sample(upstream)))
    assert 1e-4 < fine < 0.9 * coarse < 0.1  # what quantized activations change
    assert model.model.spec.int8


def test_requantizing_keeps_small_changes_on_average():
    weight = checkpoints.draw(1, "w", (128, 128))
    step = weight.abs().max() / 128
    nudged = torch.full((128, 128), 10.25) * step
    nudged[0, 0] = 128 * step
    tensor = QuantizedTensor.from_float(nudged, LAYOUT, stochastic_rounding=7)
    assert abs((tensor.dequantize()[1:] / step).mean() - 10.25) < 0.02  # 16,256 draws of standard deviation 0.43
    assert torch.equal(tensor._qdata, TurboDiffusionBlockINT8Layout.quantize(nudged, stochastic_rounding=7)[0])
    assert (QuantizedTensor.from_float(nudged, LAYOUT)._qdata[1:] == 10).all()


STATE_DICTS = {
    "int8": lambda: checkpoints.upstream_state_dict(41, ffn_dim=300, layers=1, sla=True, int8=True),
    "nf4": lambda: lingbot.packed(checkpoints.stock(43, ffn_dim=300, layers=1)),
}
Q_LORA = checkpoints.lora(layers={"blocks.0.self_attn.q": (256, 256)})
LORAS = {  # by the node that applies it
    "none": lambda model: model,
    "pack": lambda model: with_lora(model, "test.safetensors", Q_LORA, 0.8)[0],
    "stock": lambda model: comfy.sd.load_lora_for_models(model, None, Q_LORA, 0.8, 0)[0],
}


@pytest.fixture(params=STATE_DICTS)
def single(request, tmp_path):
    """Each kind with one block, and its name."""
    return loaded(tmp_path / "single.safetensors", STATE_DICTS[request.param]()), request.param


def test_offloaded_weights_stay_quantized_and_give_the_same_bits(single):
    model, kind = single
    resident, before = step(model), sample(model)
    comfy.model_management.unload_all_models()
    assert torch.equal(step(model, lowvram_model_memory=1), resident)
    assert model.model.calls["int8 linear"] == LINEARS * (kind == "int8")
    assert torch.equal(step(model), resident) and torch.equal(sample(model), before)


def test_a_saved_model_loads_again(single, tmp_path):
    """Int8 also with a stock LoRA in it, which is requantized: saved is what ran."""
    model, kind = single
    for lora in ("none", "stock") if kind == "int8" else ("none",):
        path, patcher = tmp_path / f"{lora}.safetensors", LORAS[lora](model)
        comfy.sd.save_checkpoint(str(path), patcher)
        again = load_model(str(path))
        assert again.model.spec == model.model.spec
        assert same(weights(again), weights(patcher))


@pytest.mark.usefixtures("no_graphs")
@pytest.mark.parametrize(
    "kind, lora, backend",
    [
        ("int8", "none", "eager"),
        ("int8", "pack", "eager"),
        ("int8", "pack", "inductor"),
        ("nf4", "none", "eager"),
        ("nf4", "pack", "eager"),
        ("nf4", "stock", "eager"),
    ],
)
def test_the_stock_compile_node_works_and_the_pack_breaks_no_graph(kind, lora, backend, tmp_path):
    """One layer: compiling by inductor takes half a minute for two."""
    model = LORAS[lora](loaded(tmp_path / "single.safetensors", STATE_DICTS[kind]()))
    expected = sample(model)
    compiled = compiled_by(backend, model)
    # A compiler may sum in another order, which can flip an int8 code and with it all that follows.
    assert relative_error(sample(compiled), expected) <= {"int8": 1e-2, "nf4": 1e-6}[kind]
    calls = compiled.model.calls
    assert calls["int8 linear"] == LINEARS * (kind == "int8")
    assert (calls["nf4 dequantize"] > 0) == (kind == "nf4")
    if lora != "stock":  # ComfyUI's own patch arithmetic is no part of the pack
        assert only_comfyui_breaks_graphs()


# The eager backend runs the same operators in the same order: a tenth of what tells the settings apart.
TRACED = 1e-3


@pytest.mark.usefixtures("no_graphs")
def test_what_is_set_before_and_after_the_compile_node_holds(tmp_path):
    """Attention, dense first steps and a LoRA, per clone, in both orders: no graph of one serves another."""
    single = loaded(tmp_path / "single.pth", STATE_DICTS["int8"]())
    changes = (
        lambda m: with_attention(m, "sla", 0.7, "", False),
        lambda m: with_attention(m, "dense", 0.1, "", False),
        lambda m: with_attention(m, "sla", 0.7, "", False, 1),
        lambda m: LORAS["pack"](with_attention(m, "sla", 0.7, "", False)),
    )
    expected = [sample(change(single), steps=2) for change in changes]
    assert min(relative_error(a, b) for a, b in itertools.combinations(expected, 2)) > 2 * TRACED
    compiled = compiled_by("eager", single)
    for i, change in enumerate(changes):
        for model in (change(compiled), compiled_by("eager", change(single))):
            assert relative_error(sample(model, steps=2), expected[i]) <= TRACED
            assert model.model.calls["float linear"] == 0
            assert model.model.calls["sparse attention"] == (2, 0, 1, 2)[i]


def test_stock_merge_nodes_take_int8_models(model, tmp_path):
    state_dict = checkpoints.upstream_state_dict(42, ffn_dim=300, sla=True, int8=True)
    other = loaded(tmp_path / "other.pth", state_dict)
    merged = ModelMergeSimple().merge(model, other, 0.25)[0]
    comfy.model_management.load_models_gpu([merged])
    ours, others = (checkpoints.upstream_state_dict(seed, ffn_dim=300, sla=True) for seed in (41, 42))
    layer = "blocks.1.ffn.2.weight"
    weight = comfy.utils.get_attr(merged.model.diffusion_model, layer)
    assert is_block_int8(weight)
    # Half a step of the codes on either side, and the rounding of the merged weight.
    assert relative_error(weight.dequantize(), 0.75 * others[layer] + 0.25 * ours[layer]) <= 2e-2

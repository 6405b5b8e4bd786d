"""What is fused around the linears of a TurboWan block: that it is, that it changes nothing, and what keeps it from
being."""

import dataclasses

import comfy.ops
import pytest
import torch
from comfy.ldm.wan.model import WanT2VCrossAttention
from comfy.quant_ops import QuantizedTensor
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import compiled_by, loaded, only_comfyui_breaks_graphs, relative_error, sample
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.fused import own_forward
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.quant import CHANNEL_LAYOUT, takes_codes
from torch.utils._python_dispatch import TorchDispatchMode

SHAPE = (2, 16, 3, 16, 16)
CPU = torch.device("cpu")
# Of one block: the norms quantize for q, k, v, cross-attention's q and ffn.0, ffn.0 for ffn.2; both o and ffn.2 add to
# the residual. Cross-attention's k and v quantize the text for themselves.
FUSED = {
    "rms_norm_rope": 2,
    "layer_norm_modulate_quantize": 3,
    "int8_matmul": 4,
    "int8_matmul_gelu_quantize": 1,
    "int8_quantize": 2,
    "int8_matmul_gate_residual": 3,
    "int8_linear": 2,
    "sparse_linear_attention": 1,
}
PLAIN = {"rms_norm_rope": 2, "layer_norm_modulate": 2, "int8_linear": 10, "sparse_linear_attention": 1}


class Recorder(TorchDispatchMode):
    """Counts the pack's operators."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, name = function.name().split("::")
        if namespace == "turbodiffusion":
            self.calls[name] = self.calls.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


@pytest.fixture(params=["fp32", "bf16", "bf16-upstream"])
def model(request, tmp_path):
    # 300 is no multiple of a tile, so that ragged tiles are in every test; one layer.
    state_dict = checkpoints.upstream_state_dict(41, ffn_dim=300, layers=1, sla=True, int8=True)
    dtype, _, activations = request.param.partition("-")
    return loaded(tmp_path / "quant.pth", state_dict, dtype, activations or "fine")


def forward(patcher) -> tuple[torch.Tensor, dict[str, int]]:
    """Velocity of one pass over a batch of two, and the operators it called."""
    patcher.patch_model()
    network = patcher.model.diffusion_model
    dtype = patcher.model.get_dtype_inference()
    x, context = checkpoints.draw(2, "x", SHAPE).to(dtype), checkpoints.draw(1, "text", (2, 8, 4096)).to(dtype)
    with torch.no_grad(), Recorder() as recorder:
        velocity = network(x, torch.tensor([988.0, 932.0]), context=context)
    patcher.unpatch_model()
    return velocity, recorder.calls


def linears(patcher) -> list[torch.nn.Module]:
    block = patcher.model.diffusion_model.blocks[0]
    cross = block.cross_attn
    return [*(getattr(block.self_attn, name) for name in "qkvo"), block.ffn[0], block.ffn[2], cross.q, cross.o]


def unfused(patcher) -> tuple[torch.Tensor, dict[str, int]]:
    """`forward` with a hook on each layer that does nothing, which keeps it from being fused."""
    handles = [linear.register_forward_hook(lambda *given: None) for linear in linears(patcher)]
    result = forward(patcher)
    for handle in handles:
        handle.remove()
    return result


def test_fused_is_plain_bit_for_bit(model):
    velocity, calls = forward(model)
    assert calls == FUSED
    plain, calls = unfused(model)
    assert calls == PLAIN
    assert torch.equal(velocity, plain)
    assert torch.equal(forward(model)[0], velocity)


def test_dense_layers_are_fused_too(model):
    dense = with_attention(model, "dense", 0.1, "", False)
    velocity, calls = forward(dense)
    assert calls == {name: count for name, count in FUSED.items() if name != "sparse_linear_attention"}
    # Against ComfyUI's own attention class, which the layer's plain forward is.
    attention = model.model.diffusion_model.blocks[0].self_attn
    attention.register_forward_hook(lambda *given: None)
    tolerance = {torch.float32: 1e-2, torch.bfloat16: 2e-2}[
        model.model.get_dtype_inference()
    ]  # a flipped code moves all after it
    assert relative_error(forward(dense)[0].float(), velocity.float()) <= tolerance


def test_weights_that_comfyui_fetches_are_fused_too(model, monkeypatch):
    """On a GPU offloaded weights are not on the device. On a CPU every weight is, so the layers are told otherwise."""
    velocity, _ = forward(model)
    fetched = []
    cast = comfy.ops.cast_bias_weight

    def recorded(layer, *args, **kwargs):
        fetched.append(layer)
        return cast(layer, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", recorded)
    for linear in linears(model):
        linear._is_resident = lambda device, dtype: False
    again, calls = forward(model)
    assert calls == FUSED and torch.equal(again, velocity)
    assert set(linears(model)) <= set(fetched)


@pytest.mark.parametrize(
    "layer, plain",
    [
        ("self_attn.q", {"layer_norm_modulate": 1, "layer_norm_modulate_quantize": 2, "int8_quantize": 3}),
        ("self_attn.o", {}),
        ("cross_attn.q", {"layer_norm_modulate": 1, "layer_norm_modulate_quantize": 2, "int8_quantize": 3}),
        ("cross_attn.o", {}),
        ("ffn.0", {"layer_norm_modulate": 1, "layer_norm_modulate_quantize": 2, "int8_matmul_gelu_quantize": None,
                   "int8_matmul": 5, "int8_quantize": 4}),
        ("ffn.2", {"int8_matmul_gelu_quantize": None, "int8_matmul": 5, "int8_quantize": 3}),
    ],
)  # fmt: skip
def test_a_lora_is_added_to_int8_products(model, layer, plain):
    """It reads what the norm made, so that the layer stays int8; only GELU, which follows it, is a step of its own."""
    shape = {"ffn.0": (300, 256), "ffn.2": (256, 300)}.get(layer, (256, 256))
    lora = checkpoints.lora(layers={f"blocks.0.{layer}": shape}, size=1.0)
    patched, _ = with_lora(model, "test.safetensors", lora, 0.1)
    changed, calls = forward(patched)
    assert calls == {name: count for name, count in (FUSED | plain).items() if count}
    # Beside a layer that is not fused: the same sums, in another order where gate and residual follow.
    apart, _ = unfused(patched)
    assert relative_error(changed.float(), apart.float()) <= 1e-2  # a flipped code moves all after it
    assert relative_error(changed.float(), forward(model)[0].float()) > 3e-2


def test_a_node_that_replaces_a_forward_gets_what_it_expects(model):
    """Packs that chunk the feed-forward or enhance attention put their own forward on these modules."""
    velocity, _ = forward(model)
    given = {}
    block = model.model.diffusion_model.blocks[0]

    def replacement(name, original):
        def forward(x, *args, **kwargs):
            given[name] = x
            return original(x, *args, **kwargs)

        return forward

    patched = model.clone()
    for name in ("self_attn", "cross_attn", "ffn"):
        original = getattr(block, name).forward
        patched.add_object_patch(f"diffusion_model.blocks.0.{name}.forward", replacement(name, original))
    replaced, calls = forward(patched)
    assert set(given) == {"self_attn", "cross_attn", "ffn"}
    assert all(isinstance(x, torch.Tensor) and x.is_floating_point() for x in given.values())
    assert calls == PLAIN and torch.equal(replaced, velocity)


def test_a_pack_that_replaces_cross_attention_of_all_models_is_run(model, monkeypatch):
    velocity, _ = forward(model)
    original, given = WanT2VCrossAttention.forward, []

    def replacement(self, x, *args, **kwargs):
        given.append(x)
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(WanT2VCrossAttention, "forward", replacement)
    replaced, calls = forward(model)
    assert len(given) == 1 and given[0].is_floating_point()
    assert calls["int8_linear"] == 4 and torch.equal(replaced, velocity)


def test_a_pack_that_replaced_cross_attention_before_is_seen(monkeypatch):
    assert own_forward(WanT2VCrossAttention) is WanT2VCrossAttention.forward
    monkeypatch.setattr(WanT2VCrossAttention, "forward", lambda self, x, *args, **kwargs: x)
    assert own_forward(WanT2VCrossAttention) is None


def test_what_takes_codes(model, tmp_path):
    linear = linears(model)[0]
    assert takes_codes(CPU, *linears(model))
    assert not takes_codes(CPU, linear, torch.nn.Linear(4, 4))
    linear.weight_function.append(lambda weight: weight)
    assert not takes_codes(CPU, linear)
    linear.weight_function.clear()
    linear.comfy_force_cast_weights = True
    assert not takes_codes(CPU, linear)
    bf16 = loaded(tmp_path / "m.pth", checkpoints.upstream_state_dict(41, layers=1, sla=True))
    assert forward(bf16)[1] == {"rms_norm_rope": 2, "layer_norm_modulate": 2, "sparse_linear_attention": 1}


# --- ComfyUI's int8 with a scale for each output channel --------------------------------------------------------------


@pytest.fixture(params=["fp32", "bf16"])
def by_channel(request, tmp_path):
    source = checkpoints.write_pth(
        tmp_path / "m.pth", checkpoints.upstream_state_dict(41, ffn_dim=300, layers=1, sla=True)
    )
    path = tmp_path / "channels.safetensors"
    convert(Request(model=source, output=path, weights="int8_rowwise"))
    return load_model(str(path), request.param)


def test_weights_by_channel_are_fused_too(by_channel, monkeypatch):
    """Cross-attention's linears stay ComfyUI's. Beside ComfyUI's own: the same bits in float32; in bfloat16 the norm is
    quantized before it is rounded."""
    velocity, calls = forward(by_channel)
    assert calls == {name: count for name, count in FUSED.items() if name != "int8_linear"}
    plain, calls = unfused(by_channel)
    assert not any(name.startswith("int8") for name in calls)
    error = relative_error(velocity.float(), plain.float())
    assert error == 0 if by_channel.model.get_dtype_inference() == torch.float32 else error <= 2e-2
    for linear in linears(by_channel):
        linear._is_resident = lambda device, dtype: False
    fetched, calls = forward(by_channel)
    assert calls["int8_matmul"] == 4 and torch.equal(fetched, velocity)


def test_a_layer_by_channel_given_codes_computes_what_it_does_of_the_values(by_channel):
    linear = linears(by_channel)[0]
    x = checkpoints.draw(2, "x", (2, 130, 256)).to(by_channel.model.get_dtype_inference())
    exact = x.double() @ linear.weight.dequantize().double().T + linear.bias.double()
    ours, theirs = (relative_error(linear(given), exact) for given in (linear.quantize(x), x))
    assert ours <= 1.05 * theirs <= 2e-2


def test_what_of_comfyui_s_int8_is_not_fused(by_channel):
    linear = linears(by_channel)[0]
    assert takes_codes(CPU, linear)
    linear.pre_quant_scale = torch.nn.Parameter(torch.ones(256))
    assert not takes_codes(CPU, linear)
    linear.pre_quant_scale = None
    linear._full_precision_mm = True
    assert not takes_codes(CPU, linear)
    linear._full_precision_mm = False
    rotated = dataclasses.replace(linear.weight._params, convrot=True)
    linear.weight = torch.nn.Parameter(
        QuantizedTensor(linear.weight._qdata, CHANNEL_LAYOUT, rotated), requires_grad=False
    )
    assert not takes_codes(CPU, linear)


@pytest.mark.usefixtures("no_graphs")
def test_the_compile_node_takes_weights_by_channel(by_channel):
    compiled = compiled_by("eager", by_channel)
    assert relative_error(sample(compiled), sample(by_channel)) <= 1e-3
    assert only_comfyui_breaks_graphs()


def test_a_lora_beside_a_weight_by_channel(by_channel):
    lora = checkpoints.lora(layers={"blocks.0.self_attn.q": (256, 256)}, size=1.0)
    changed, calls = forward(with_lora(by_channel, "test.safetensors", lora, 0.1)[0])
    assert calls["int8_matmul"] == 4 and calls["int8_matmul_gate_residual"] == 3 and calls["int8_quantize"] == 3
    assert relative_error(changed.float(), forward(by_channel)[0].float()) > 3e-2

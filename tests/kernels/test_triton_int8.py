"""The int8 kernels against their plain-torch definitions and float64, in Triton's interpreter unless there is a GPU."""

import math
from functools import partial

import pytest
import torch
from td_pack.kernels.int8 import format, reference
from td_pack.kernels.int8.triton import linear, quantize
from td_pack.tests.kernels.aot_cases.int8 import CASES
from td_pack.tests.support import tensors
from td_pack.tests.support.aot import NVIDIA, RDNA, TARGETS
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.poison import poisoned_memory
from td_pack.tests.support.tensors import DTYPES, spread

draw = partial(tensors.draw, device=DEVICE)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which interprets Inf - Inf and exp(1000)
QUANTIZERS = pytest.mark.parametrize("quantizer", ["quantize_block", "quantize_group", "quantize_row"])


poisoned = poisoned_memory(format, quantize, linear)


def operands(m, n, k, quantizer="quantize_block", batch=()):
    """Codes and scales of activations [*batch, m, k] and of a weight [n, k]."""
    return (
        *getattr(reference, quantizer)(draw(*batch, m, k)),
        *reference.quantize_block(draw(n, k, seed=1) / k**0.5),
    )


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def assert_product(got, want):
    """Bit for bit in the interpreter, which does not fuse the multiply-add; on a GPU a last place of few elements."""
    assert got.dtype == want.dtype and got.shape == want.shape
    if DEVICE.type == "cpu":
        assert torch.equal(got, want)
    elif got.dtype == torch.float32:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    else:
        assert (got != want).float().mean() < 1e-3
        eps = torch.finfo(got.dtype).eps  # of the product before the bias, which may cancel most of it
        torch.testing.assert_close(got, want, rtol=eps, atol=eps * want.abs().max().item())


def assert_near_codes(got, want):
    """Scales to float32's precision of exp, codes up to one on few elements."""
    torch.testing.assert_close(got[1], want[1], rtol=2e-6 if DEVICE.type == "cpu" else 1e-2, atol=0)
    difference = (got[0].int() - want[0].int()).abs()
    assert difference.max() <= 1 and (difference > 0).float().mean() < 1e-3


# --- quantizers -------------------------------------------------------------------------------------------------------


@QUANTIZERS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (127, 128), (2, 128, 129), (2, 1, 130, 64)])
def test_quantizers(quantizer, dtype, shape):
    x = draw(*shape, dtype=dtype)
    assert_equal(getattr(quantize, quantizer)(x), getattr(reference, quantizer)(x))


@QUANTIZERS
def test_quantizers_on_strided_views(quantizer):
    x = draw(2, 40, 140)
    for view in (x.transpose(1, 2)[:, :20], x[:, ::2], x[..., 1:], x[:1].expand(3, 40, 140)):
        assert_equal(getattr(quantize, quantizer)(view), getattr(reference, quantizer)(view))


@QUANTIZERS
@pytest.mark.parametrize(
    "values",
    [
        [0.0, -0.0],
        [1e-30, 3e-9],
        [65504.0, -65504.0, 1.0],
        [3e38, -1.0],
        [math.nan, 1.0],
        [1.0, math.inf],
        [-math.inf, math.nan, 2.0],
        [-128.0, 127.5, 0.5, 1.5, -2.5, 126.5],
        [254.0, 1.0, 3.0, -5.0],
    ],
)
def test_quantizers_on_extreme_values(quantizer, values):
    x = torch.zeros(130, 200, device=DEVICE)
    x[129, : len(values)] = torch.tensor(values)
    got, want = getattr(quantize, quantizer)(x[64:]), getattr(reference, quantizer)(x[64:])
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=0, equal_nan=True)
    if quantizer == "quantize_group":  # the codes of a group with NaN or Inf are of no consequence
        got, want = ([codes * spread(scales.isfinite(), codes), scales] for codes, scales in (got, want))
    assert torch.equal(got[0], want[0])


# --- the product ------------------------------------------------------------------------------------------------------

CONFIGS = {
    "plain": {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "MAGIC": False, "num_warps": 8, "num_stages": 3},
    "magic": {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "MAGIC": True, "num_warps": 8, "num_stages": 3},
    "narrow": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128, "MAGIC": False, "num_warps": 4, "num_stages": 4},
}


@QUANTIZERS
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (127, 128, 129), (129, 200, 256), (300, 65, 300)])
def test_product(monkeypatch, quantizer, config, m, n, k):
    monkeypatch.setattr(linear, "launch_config", lambda *_, **__: CONFIGS[config])
    given = operands(m, n, k, quantizer)
    got = linear.int8_matmul(*given, out_dtype=torch.float32)
    assert_product(got, reference.int8_matmul(*given, out_dtype=torch.float32))


@QUANTIZERS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias_dtype", [None, torch.float32, torch.float16])
def test_product_with_bias_on_a_batch(quantizer, dtype, bias_dtype):
    given = operands(130, 140, 200, quantizer, batch=(2,))
    bias = None if bias_dtype is None else draw(140, seed=2, dtype=bias_dtype)
    got = linear.int8_matmul(*given, bias, out_dtype=dtype)
    assert_product(got, reference.int8_matmul(*given, bias, out_dtype=dtype))


@pytest.mark.parametrize("config", ["plain", "magic"])
def test_the_largest_sums_are_exact(monkeypatch, config):
    monkeypatch.setattr(linear, "launch_config", lambda *_, **__: CONFIGS[config])
    x = torch.full((2, 256), -128, dtype=torch.int8, device=DEVICE)
    w = x.clone()
    w[1] = 127
    ones = torch.ones(1, 2, device=DEVICE)
    got = linear.int8_matmul(x, ones, w, ones, out_dtype=torch.float32)
    assert got.tolist() == [[2.0**22, -128.0 * 127 * 256]] * 2


def test_more_tiles_than_a_group():
    """Eleven and two columns of tiles: a whole group of eight, a shorter one, and items that meet inside a group."""
    given = operands(700, 140, 16, batch=(2,))
    assert_product(
        linear.int8_matmul(*given, out_dtype=torch.float32), reference.int8_matmul(*given, out_dtype=torch.float32)
    )


@pytest.mark.parametrize("activation", ["block", "group", "row"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(activation, dtype):
    x, bias = draw(2, 60, 200, dtype=dtype)[:, ::2], draw(140, seed=2, dtype=dtype)
    w, w_scale = reference.quantize_block(draw(140, 200, seed=1))
    got = linear.int8_linear(x, w, w_scale, bias, activation=activation)
    assert got.dtype == dtype
    assert_product(got, reference.int8_linear(x, w, w_scale, bias, activation=activation))


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (130, 300, 200)])
def test_weight_by_channel(m, n, k):
    given = *reference.quantize_row(draw(2, m, k)), *reference.quantize_row(draw(n, k, seed=1) / k**0.5)
    bias, residual, gate = draw(n, seed=2), draw(2, m, n, seed=3), draw(2, 1, n, seed=4)
    got = linear.int8_matmul(*given, bias, out_dtype=torch.float32)
    assert_product(got, reference.int8_matmul(*given, bias, out_dtype=torch.float32))
    got = linear.int8_matmul_gelu_quantize(*given, bias, out_dtype=torch.float32, by="row")
    assert_near_codes(got, reference.int8_matmul_gelu_quantize(*given, bias, out_dtype=torch.float32, by="row"))
    epilogue = {"residual": residual, "gate": gate}
    got = linear.int8_matmul_gate_residual(*given, bias, **epilogue)
    torch.testing.assert_close(got, reference.int8_matmul_gate_residual(*given, bias, **epilogue))


def test_operands_that_are_views():
    x, x_scale, w, w_scale = operands(20, 40, 200)
    views = [t.repeat_interleave(2, -1)[..., ::2] for t in (x, x_scale, w, w_scale)]
    assert not any(t.is_contiguous() for t in views)
    got = linear.int8_matmul(*views, out_dtype=torch.float32)
    assert torch.equal(got, linear.int8_matmul(x, x_scale, w, w_scale, out_dtype=torch.float32))


# --- epilogues --------------------------------------------------------------------------------------------------------


@QUANTIZERS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, mean, by", [(1, 3, "block"), (140, -3, "block"), (140, -3, "group"), (140, -3, "row")])
def test_gelu_quantize(quantizer, dtype, m, mean, by):
    given, bias = operands(m, 200, 200, quantizer, batch=(2,)), mean + draw(200, seed=2)
    got = linear.int8_matmul_gelu_quantize(*given, bias, out_dtype=dtype, by=by)
    assert_near_codes(got, reference.int8_matmul_gelu_quantize(*given, bias, out_dtype=dtype, by=by))


def test_gelu_of_extreme_values():
    """Rows of a unit weight's tile: far tails of the GELU, zeros, and values that are not finite."""
    x = torch.tensor([[50.0], [-50.0], [-6.0], [0.0], [1e30], [-1e30]], device=DEVICE).repeat_interleave(128, 0)
    one = torch.tensor([[127]], dtype=torch.int8, device=DEVICE), torch.full((1, 1), 1 / 127, device=DEVICE)
    given = *reference.quantize_row(x), *one
    got = linear.int8_matmul_gelu_quantize(*given, out_dtype=torch.float32)
    want = reference.int8_matmul_gelu_quantize(*given, out_dtype=torch.float32)
    assert (got[0].int() - want[0].int()).abs().max() <= 1
    # float32's tanh loses all of the tail at -6, where the GELU is -1e-9 or smaller: both scales are then next to the
    # least
    torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-9)


@QUANTIZERS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate_shape", [(2, 140), (2, 1, 140)])
def test_gate_residual(quantizer, dtype, gate_shape):
    given, bias = operands(130, 140, 200, quantizer, batch=(2,)), draw(140, seed=2)
    residual = draw(2, 140, 130, seed=3, dtype=dtype).transpose(1, 2)
    gate = draw(*gate_shape, seed=4)
    got = linear.int8_matmul_gate_residual(*given, bias, residual=residual, gate=gate)
    want = reference.int8_matmul_gate_residual(*given, bias, residual=residual, gate=gate)
    torch.testing.assert_close(
        got, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-3 if dtype != torch.float32 else 1e-6
    )


# --- launches ---------------------------------------------------------------------------------------------------------


def test_the_compiled_cases_are_what_is_launched():
    """aot_cases/int8.py holds launch configs of its own, being data; they must be those of `launch_config`."""
    matmuls = [case for case in CASES if case.function == "_matmul_kernel"]
    for case in matmuls:
        for target, build in case.targets.items():
            capability = TARGETS[target].capability if target in NVIDIA else (0, 0)
            narrow = case.constexprs["BLOCK_N"] == 64
            square = "p_y_scale" not in case.constexprs
            compiled = case.constexprs | dict(build.constexprs)
            channel = case.constexprs["BY_CHANNEL"]
            options = linear.launch_config(capability, 512 if narrow else 1 << 15, square, target in RDNA, channel)
            assert options == {
                **{key: compiled[key] for key in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "MAGIC")},
                **{"num_warps": build.num_warps, "num_stages": build.num_stages},
            }, (case.name, target)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (0, 0)])
def test_a_fused_quantizer_computes_one_tile(capability):
    assert linear.launch_config(capability, 1, square=True)["BLOCK_N"] == 128

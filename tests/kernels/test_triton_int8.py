"""The int8 kernels against their plain-torch definitions and float64, in Triton's interpreter unless there is a GPU."""

import math
from functools import partial

import pytest
import torch
from td_pack.kernels.int8 import format, reference
from td_pack.kernels.int8.triton import linear, quantize
from td_pack.kernels.launch import Chip
from td_pack.tests.support import tensors
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.poison import poisoned_memory
from td_pack.tests.support.tensors import DTYPES, spread

draw = partial(tensors.draw, device=DEVICE)
operands = partial(tensors.int8_operands, device=DEVICE)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, which interprets Inf - Inf and exp(1000)
KINDS = pytest.mark.parametrize("by", format.KINDS)
poisoned = poisoned_memory(format, quantize, linear)


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


def assert_computes(function, *given, equal=assert_product, **options):
    """The kernel gives what the definition of that name gives."""
    equal(getattr(linear, function)(*given, **options), getattr(reference, function)(*given, **options))


# --- quantizers -------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (127, 128), (2, 128, 129), (2, 1, 130, 64)])
def test_quantizers(by, dtype, shape):
    x = draw(*shape, dtype=dtype)
    assert_equal(quantize.QUANTIZERS[by](x), reference.QUANTIZERS[by](x))


@KINDS
def test_quantizers_on_strided_views(by):
    x = draw(2, 40, 140)
    for view in (x.transpose(1, 2)[:, :20], x[:, ::2], x[..., 1:], x[:1].expand(3, 40, 140)):
        assert_equal(quantize.QUANTIZERS[by](view), reference.QUANTIZERS[by](view))


@KINDS
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
def test_quantizers_on_extreme_values(by, values):
    x = torch.zeros(130, 200, device=DEVICE)
    x[129, : len(values)] = torch.tensor(values)
    got, want = quantize.QUANTIZERS[by](x[64:]), reference.QUANTIZERS[by](x[64:])
    torch.testing.assert_close(got[1], want[1], rtol=0, atol=0, equal_nan=True)
    if by == "group":  # the codes of a group with NaN or Inf are of no consequence
        got, want = ([codes * spread(scales.isfinite(), codes), scales] for codes, scales in (got, want))
    assert torch.equal(got[0], want[0])


# --- the product ------------------------------------------------------------------------------------------------------

CONFIGS = {
    "plain": {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "MAGIC": False, "num_warps": 8, "num_stages": 3},
    "magic": {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "MAGIC": True, "num_warps": 8, "num_stages": 3},
    "narrow": {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128, "MAGIC": False, "num_warps": 4, "num_stages": 4},
}
MAGIC = pytest.param("magic", marks=pytest.mark.skipif(
    DEVICE.type == "cuda" and torch.cuda.get_device_capability() == (9, 0),
    reason="for 9.0, where it is not launched, Triton writes the sum's start behind the fence of the product",
))  # fmt: skip


@KINDS
@pytest.mark.parametrize("config", ["plain", MAGIC, "narrow"])
@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (127, 128, 129), (129, 200, 256), (300, 65, 300)])
def test_product(monkeypatch, by, config, m, n, k):
    monkeypatch.setattr(linear, "launch_config", lambda *_, **__: CONFIGS[config])
    assert_computes("int8_matmul", *operands(m, n, k, by), out_dtype=torch.float32)


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias_dtype", [None, torch.float32, torch.float16])
def test_linear_with_bias_on_a_strided_batch(by, dtype, bias_dtype):
    x, weight = draw(2, 260, 200, dtype=dtype)[:, ::2], reference.quantize_block(draw(140, 200, seed=1))
    bias = None if bias_dtype is None else draw(140, seed=2, dtype=bias_dtype)
    assert_computes("int8_linear", x, *weight, bias, activation=by)


@pytest.mark.parametrize("config", ["plain", MAGIC])
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
    assert_computes("int8_matmul", *operands(700, 140, 16, batch=(2,)), out_dtype=torch.float32)


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (130, 300, 200)])
def test_weight_by_channel(m, n, k):
    given = *reference.quantize_row(draw(2, m, k)), *reference.quantize_row(draw(n, k, seed=1) / k**0.5)
    given, kind = (*given, draw(n, seed=2)), {"out_dtype": torch.float32}
    assert_computes("int8_matmul", *given, **kind)
    assert_computes("int8_matmul_gelu_quantize", *given, **kind, by="row", equal=assert_near_codes)
    epilogue = {"residual": draw(2, m, n, seed=3), "gate": draw(2, 1, n, seed=4)}
    assert_computes("int8_matmul_gate_residual", *given, **epilogue, equal=torch.testing.assert_close)


def test_operands_that_are_views():
    x, x_scale, w, w_scale = operands(20, 40, 200)
    views = [t.repeat_interleave(2, -1)[..., ::2] for t in (x, x_scale, w, w_scale)]
    assert not any(t.is_contiguous() for t in views)
    got = linear.int8_matmul(*views, out_dtype=torch.float32)
    assert torch.equal(got, linear.int8_matmul(x, x_scale, w, w_scale, out_dtype=torch.float32))


# --- epilogues --------------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m, mean, y_by", [(1, 3, "block"), (140, -3, "block"), (140, -3, "group"), (140, -3, "row")])
def test_gelu_quantize(by, dtype, m, mean, y_by):
    given = *operands(m, 200, 200, by, batch=(2,)), mean + draw(200, seed=2)
    assert_computes("int8_matmul_gelu_quantize", *given, out_dtype=dtype, by=y_by, equal=assert_near_codes)


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


@KINDS
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gate_shape", [(2, 140), (2, 1, 140)])
def test_gate_residual(by, dtype, gate_shape):
    given = *operands(130, 140, 200, by, batch=(2,)), draw(140, seed=2)
    epilogue = {"residual": draw(2, 140, 130, seed=3, dtype=dtype).transpose(1, 2), "gate": draw(*gate_shape, seed=4)}
    atol = 1e-3 if dtype != torch.float32 else 1e-6
    equal = partial(torch.testing.assert_close, rtol=2 * torch.finfo(dtype).eps, atol=atol)
    assert_computes("int8_matmul_gate_residual", *given, **epilogue, equal=equal)


# --- launches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0), (0, 0)])
def test_a_fused_quantizer_computes_one_tile(capability):
    assert linear.launch_config(Chip(capability), 1, square=True)["BLOCK_N"] == 128

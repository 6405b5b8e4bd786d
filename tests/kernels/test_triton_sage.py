"""8-bit sparse attention in Triton against its plain torch reference, which rounds alike, and float64.

Runs in the interpreter without a GPU (float32 and float16: it does not round to bfloat16), and for real with one."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter
from td_pack.kernels.attention import pv_format
from td_pack.kernels.attention.pv_format import PV_FORMATS
from td_pack.kernels.attention.reference import sage as reference
from td_pack.kernels.attention.reference import sage_sparse_linear_attention as reference_attention
from td_pack.kernels.attention.reference import sla
from td_pack.kernels.attention.triton import block_selection as block_map
from td_pack.kernels.attention.triton import kv_prepare
from td_pack.kernels.attention.triton import kv_quantize as quantizer
from td_pack.kernels.attention.triton import sage as attention
from td_pack.kernels.attention.triton.kv_quantize import kv_quantize
from td_pack.kernels.attention.triton.sage import sage_attention, sage_sparse_linear_attention
from td_pack.kernels.launch import Chip
from td_pack.tests.kernels.aot_cases import sage as aot_cases
from td_pack.tests.support import tensors
from td_pack.tests.support.aot import TARGETS
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.poison import poisoned_memory
from td_pack.tests.support.sage import assert_within, exact
from td_pack.tests.support.sage import qkv as inputs
from td_pack.tests.support.tensors import DTYPE, DTYPES, relative

CAPABILITY = torch.cuda.get_device_capability() if DEVICE.type == "cuda" else (12, 0)
FORMATS = [pv for pv in PV_FORMATS if pv != "fp8" or CAPABILITY >= (8, 9)]
# Relative L2 against the reference on the same codes: exp2 differs in its last bit, and a weight then rounds the other
# way once in a while. The GPU's exp2 is less exact, and its fp8 sums may be rounded to float16.
SAME = {"fp16": 2e-5, "int8": 1e-4, "fp8": 5e-4} if DEVICE.type == "cpu" else {"fp16": 1e-4, "int8": 2e-3, "fp8": 5e-3}
# For 8.9 Triton converts a weight to fp8 through float16, rounded towards zero: one in about 2^8 becomes the wrong
# neighbor, an eighth away, which is 2^-4 * 2^-3 at most over the whole.
THROUGH_FLOAT16 = 4e-3 if CAPABILITY == (8, 9) else 0
SAME["fp8"] += THROUGH_FLOAT16
ROUNDING = {torch.float32: 0, torch.float16: 4e-4, torch.bfloat16: 3e-3}  # of the result, and of what enters a product
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 500]
draw = partial(tensors.draw, device=DEVICE)


@pytest.fixture(autouse=True)
def round_to_fp8(monkeypatch):
    """The interpreter truncates to fp8; the hardware, like torch, rounds to nearest."""
    convert = triton_interpreter._convert_float

    def rounded(data, source, target, mode):
        if (source, target) != (tl.float32, tl.float8e4nv):
            return convert(data, source, target, mode)
        return torch.from_numpy(np.array(data)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    monkeypatch.setattr(triton_interpreter, "_convert_float", rounded)


poisoned = poisoned_memory(attention, block_map, kv_prepare, quantizer, sla)


def quantized(k, v, pv, module=reference.kv_quantize):
    return module(k, v, k.mean(1, dtype=torch.float32), v.abs().amax(1).float(), pv=pv)


# --- quantization -----------------------------------------------------------------------------------------------------


def assert_same_codes(got, want):
    """Equal; on a GPU a product and a sum are one rounding, so that a code in a thousand may be the neighbor."""
    for a, b in zip(got, want, strict=True):
        if a is None or b is None:
            assert a is b
        elif DEVICE.type == "cpu":
            assert a.dtype == b.dtype and torch.equal(a.float(), b.float())
        elif a.dtype == torch.int8:
            assert (a.int() - b.int()).abs().max() <= 1 and (a != b).float().mean() < 1e-3
        else:
            torch.testing.assert_close(a.float(), b.float(), rtol=1e-6 if a.dtype == torch.float32 else 0.13, atol=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pv", FORMATS)
def test_codes(pv, length, dtype):
    _, k, v = inputs(length, dtype=dtype)
    assert_same_codes(quantized(k, v, pv, kv_quantize), quantized(k, v, pv))


@pytest.mark.parametrize("pv", FORMATS)
def test_codes_of_strided_views_batches_wide_heads_and_zero_channels(pv):
    k, v = draw(200, 2, 2, 256).permute(1, 0, 2, 3)[..., :128], draw(2, 2, 200, 128).transpose(1, 2)
    v[..., 5] = 0
    assert_same_codes(quantized(k, v, pv, kv_quantize), quantized(k, v, pv))


# --- attention on given codes -----------------------------------------------------------------------------------------


def linear_operands(d=64, h=2, b=1, dtype=torch.float32):
    return draw(b, h, d, d, seed=5, dtype=dtype), draw(b, h, d, seed=6).abs() + 0.1, draw(d, seed=7, dtype=dtype)


def assert_same(q, k, v, blocks, pv, linear=None):
    """The kernel gives what its reference does on the same codes."""
    given, options = (q, *quantized(k, v, pv), blocks, k.shape[1]), {"pv": pv, "linear": linear}
    got = sage_attention(*given, **options)
    assert got.dtype == q.dtype and got.is_contiguous()
    assert relative(got, reference.sage_attention(*given, **options)) <= SAME[pv] + ROUNDING[q.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pv", FORMATS)
def test_any_length(pv, length, dtype):
    q, k, v = inputs(length, dtype=dtype)
    assert_same(q, k, v, sla.block_map(q, k, 0.5), pv)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("pv", FORMATS)
def test_wide_heads_more_keys_than_queries_and_int32_blocks(pv, linear):
    q, k, v = inputs(321, d=128, h=1, dtype=DTYPE, peaked=True)
    blocks = sla.block_map(q[:, :140], k, 0.7).int()
    assert_same(q[:, :140], k, v, blocks, pv, linear_operands(128, 1, dtype=DTYPE) if linear else None)


@pytest.mark.parametrize("pv", FORMATS)
def test_strided_queries_in_a_batch(pv):
    q, k, v = inputs(200, b=2)
    q = q.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3)
    assert_same(q, k, v, sla.block_map(q, k, 0.5), pv, linear_operands(b=2))


def test_rows_past_the_end_do_not_widen_the_scale():
    q, k, v = inputs(130)
    q, k = q / 1000, k * 1000
    assert_same(q, k, v, sla.block_map(q, k, 1.0), "int8")


@pytest.mark.skipif(
    not attention.launch_config(Chip(CAPABILITY), 64)["SUM16"], reason="this GPU adds fp8 products up in float32"
)
@pytest.mark.parametrize("d", [64, 128])
def test_fp8_products_added_up_in_float16(monkeypatch, d):
    """448 * 2.25 for each of 64 keys is the most that can come, and float16 holds it."""
    config = attention.launch_config
    monkeypatch.setattr(attention, "launch_config", lambda *arguments: {**config(*arguments), "SUM16": True})
    q, k, v = inputs(200, d=d)
    blocks = sla.block_map(q, k, 1.0)
    operands = quantized(k, v, "fp8")
    got = sage_attention(q, *operands, blocks, 200, pv="fp8")
    assert 1e-5 < relative(got, reference.sage_attention(q, *operands, blocks, 200, pv="fp8")) <= 3e-3 + THROUGH_FLOAT16
    equal = quantized(torch.zeros_like(k), torch.ones_like(v), "fp8")
    torch.testing.assert_close(sage_attention(q, *equal, blocks, 200, pv="fp8"), torch.ones_like(q), rtol=2e-3, atol=0)


@pytest.mark.parametrize("pv", FORMATS)
def test_no_block_gives_zeros_and_the_linear_branch(pv):
    q, k, v = inputs(130)
    operands, nothing = quantized(k, v, pv), torch.empty(1, 2, 2, 0, dtype=torch.int32, device=DEVICE)
    for module in (attention, reference):
        assert not module.sage_attention(q, *operands, nothing, 130, pv=pv).any()
    linear = linear_operands()
    got = sage_attention(q, *operands, nothing, 130, pv=pv, linear=linear)
    want = reference.sage_attention(q, *operands, nothing, 130, pv=pv, linear=linear)
    torch.testing.assert_close(got, want, rtol=1e-2 if DEVICE.type == "cuda" else 1e-4, atol=1e-3)


@pytest.mark.parametrize("module", [attention, reference], ids=["kernel", "reference"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("pv", FORMATS)
def test_a_query_or_a_key_that_is_not_finite_is_seen(pv, value, module):
    q, k, v = inputs(200)
    blocks = sla.block_map(q, k, 1.0).long()
    bad = q.clone()
    bad[0, 3, 0, 0] = value
    with np.errstate(all="ignore"):
        got = module.sage_attention(bad, *quantized(k, v, pv), blocks, 200, pv=pv)
        k[0, 3, 0, 0] = value
        of_key = module.sage_block_sparse_attention(q, k, v, blocks, pv="int8")
    assert got[0, :128, 0].isnan().all() and got[0, 128:].isfinite().all() and got[0, :, 1].isfinite().all()
    assert of_key[0, :, 0].isnan().all() and of_key[0, :, 1].isfinite().all()


# --- the whole operator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pv", FORMATS)
def test_both_branches_within_the_format_and_not_in_16_bits(pv):
    q, k, v = inputs(300, h=1, peaked=True)
    projection = draw(64, 64, seed=2) / 8, draw(64, seed=3)
    sparse = exact(q, k, v, sla.block_map(q, k, 0.5))
    linear = F.linear(sla.linear_attention(q, k, v), *projection)
    alone = sage_sparse_linear_attention(q, k, v, None, None, topk=0.5, pv=pv)
    for got in (alone, sage_sparse_linear_attention(q, k, v, *projection, topk=0.5, pv=pv) - linear):
        assert_within(got, sparse, pv)
        assert relative(got, sparse) > 8e-3


@pytest.mark.parametrize("pv", FORMATS)
def test_key_blocks_of_another_size(pv):
    q, k, v = inputs(300, h=1)
    options = {"topk": 0.5, "pv": pv, "block_k": 32}
    got, want = (f(q, k, v, None, None, **options) for f in (sage_sparse_linear_attention, reference_attention))
    assert relative(got, want) <= SAME[pv] + ROUNDING[q.dtype]


# --- launch options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capability, triton_version, sage, automatic", [
    ((8, 0), (3, 6, 0), "fp16", "fp16"),
    ((8, 6), (3, 6, 0), "int8", "int8"),
    ((8, 7), (3, 6, 0), "int8", "int8"),
    ((8, 9), (3, 6, 0), "int8", "int8"),  # fp8 is predicted to be 1 % faster, and rounds twice as much
    ((8, 9), (3, 5, 0), "int8", "int8"),
    ((9, 0), (3, 6, 0), "fp8", "fp8"),
    ((9, 0), (3, 5, 0), "fp16", "fp16"),  # int8 is 2 % faster
    ((10, 0), (3, 6, 0), "fp16", ""),
    ((12, 0), (3, 4, 0), "int8", "int8"),
    ((12, 1), (3, 6, 0), "int8", "int8"),
])  # fmt: skip
def test_default_format(capability, triton_version, sage, automatic):
    chosen = pv_format.best_sage_format(capability, triton_version), pv_format.best_format(capability, triton_version)
    assert [each.name for each in chosen] == [sage, automatic] and all(each.reason for each in chosen)
    if f"sm_{capability[0]}{capability[1]}" in TARGETS:
        assert f"sm_{capability[0]}{capability[1]}" in aot_cases.MMA[sage]


def test_formats_that_are_equally_fast_are_decided_by_exactness(monkeypatch):
    for times, name in (({"fp16": 0.96}, ""), ({"fp16": 0.95}, "fp16"), ({"int8": 0.5, "fp8": 0.47}, "fp8")):
        monkeypatch.setattr(pv_format, "PREDICTED", {(8, 0): times})
        assert pv_format.best_format((8, 0), (3, 6, 0)).name == name

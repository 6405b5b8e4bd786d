"""The reference of 8-bit sparse attention against float64 attention."""

import math

import pytest
import torch
from td_pack.kernels.attention.pv_format import PV_FORMATS
from td_pack.kernels.attention.reference import sage, sla

# Relative L2 and cosine of 8-bit attention against float64: what the formats cost (measured, times about 1.7).
BOUNDS = {"fp16": (2.5e-2, 0.9997), "int8": (3.5e-2, 0.9995), "fp8": (6.5e-2, 0.998)}
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 500, 640, 1000]


def inputs(length=500, d=64, h=2, b=1, peaked=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(b, length, h, d, generator=generator) for _ in range(3))
    if peaked:  # sharp softmax, and keys far from zero, which smoothing has to remove
        q, k = 3 * q, k + 4 * torch.randn(1, 1, h, d, generator=generator)
    return q, k, v


def exact(q, k, v, blocks):
    return sla.block_sparse_attention(q.double(), k.double(), v.double(), blocks)


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def assert_within(got, want, pv):
    error, cosine = BOUNDS[pv]
    assert relative(got, want) <= error
    assert torch.cosine_similarity(got.double().flatten(), want.double().flatten(), dim=0) >= cosine


@pytest.mark.parametrize("peaked", [False, True], ids=["gaussian", "peaked"])
@pytest.mark.parametrize("d", [64, 128])
@pytest.mark.parametrize("pv", PV_FORMATS)
def test_is_attention_within_the_format(pv, d, peaked):
    q, k, v = inputs(d=d, peaked=peaked)
    blocks = sla.block_map(q, k, 0.5)
    assert_within(sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv), exact(q, k, v, blocks), pv)


@pytest.mark.parametrize("pv", PV_FORMATS)
def test_is_not_16_bit(pv):
    q, k, v = inputs()
    blocks = sla.block_map(q, k, 0.5)
    got = sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv)
    # Rounded by hand: how a CPU sums bfloat16 products inside attention depends on its instructions.
    half = sla.block_sparse_attention(*(x.bfloat16().float() for x in (q, k, v)), blocks).bfloat16()
    assert relative(half, exact(q, k, v, blocks)) < 5e-3 and relative(got, half) > 8e-3


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pv", PV_FORMATS)
def test_lengths(pv, length):
    q, k, v = inputs(length)
    blocks = sla.block_map(q, k, 1.0)
    assert_within(sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv), exact(q, k, v, blocks), pv)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype(dtype):
    q, k, v = (x.to(dtype) for x in inputs())
    blocks = sla.block_map(q, k, 0.5)
    got = sage.sage_block_sparse_attention(q, k, v, blocks, pv="int8")
    assert got.dtype == dtype
    assert_within(got, exact(q, k, v, blocks), "int8")


@pytest.mark.parametrize("pv", PV_FORMATS)
def test_a_constant_added_to_the_keys_changes_nothing(pv):
    q, k, v = inputs()
    blocks = sla.block_map(q, k, 0.5)
    shift = 50 * torch.randn(1, 1, 2, 64, generator=torch.Generator().manual_seed(1))
    moved = sage.sage_block_sparse_attention(q, k + shift, v, blocks, pv=pv)
    assert relative(moved, sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv)) < 5e-3


@pytest.mark.parametrize("pv", PV_FORMATS)
def test_one_outlier_in_v_costs_only_its_channel(pv):
    q, k, v = inputs()
    v[0, 100, 0, 3] = 500
    blocks = sla.block_map(q, k, 0.5)
    got, want = sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv), exact(q, k, v, blocks)
    others = [c for c in range(64) if c != 3]
    assert_within(got[..., others], want[..., others], pv)


def test_rounding_of_weights_is_relative_to_the_running_maximum():
    """The keys of the second block outweigh the first 2^20 times: the codes of the first are 0 by then."""
    q = torch.ones(1, 1, 1, 64)
    k = torch.cat([torch.zeros(1, 64, 1, 64), torch.full((1, 64, 1, 64), 20 * math.log(2) / 8)], dim=1)
    v = torch.cat([torch.zeros(1, 64, 1, 64), torch.ones(1, 64, 1, 64)], dim=1)
    blocks = torch.tensor([0, 1]).view(1, 1, 1, 2)
    for pv in PV_FORMATS:
        torch.testing.assert_close(
            sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv), torch.ones_like(q), rtol=1e-3, atol=0
        )


def test_no_block_gives_zeros():
    q, k, v = inputs(130)
    got = sage.sage_block_sparse_attention(q, k, v, torch.empty(1, 2, 2, 0, dtype=torch.int64), pv="int8")
    assert not got.any()


@pytest.mark.parametrize("pv", PV_FORMATS)
def test_zeros_stay_finite(pv):
    q, k, v = inputs(130)
    q[:, :128], k[:, :64], v[..., 5] = 0, 0, 0
    got = sage.sage_block_sparse_attention(q, k, v, sla.block_map(q, k, 1.0), pv=pv)
    assert got.isfinite().all() and not got[..., 5].any()


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_query_that_is_not_finite_is_seen(value):
    q, k, v = inputs(200)
    q[0, 3, 0, 0] = value
    got = sage.sage_block_sparse_attention(q, k, v, sla.block_map(*inputs(200)[:2], 1.0), pv="int8")
    assert got[0, :128, 0].isnan().all() and got[0, 128:].isfinite().all() and got[0, :, 1].isfinite().all()


def test_keys_that_are_not_finite_are_seen():
    q, k, v = inputs(200)
    k[0, 3, 0, 0] = math.nan
    got = sage.sage_block_sparse_attention(q, k, v, sla.block_map(*inputs(200)[:2], 1.0), pv="int8")
    assert got[0, :, 0].isnan().all() and got[0, :, 1].isfinite().all()


@pytest.mark.parametrize("pv", ["int8", "fp8"])
def test_quantized_values_are_within_half_a_step(pv):
    _, k, v = inputs(130)
    k8, k_scale, v8, v_scale = sage.kv_quantize(k, v, k.mean(1), v.abs().amax(1), pv=pv)
    keys = k8.float().unflatten(2, (3, 64)) * k_scale[..., None, None]
    smooth = (k - k.mean(1, keepdim=True)).transpose(1, 2)
    assert ((keys.flatten(2, 3)[:, :, :130] - smooth).abs() <= k_scale.amax() * 0.5001).all()
    assert k8.abs().max() <= 127 and not k8[:, :, 130:].any() and not v8[..., 130:].float().any()
    error = (v8.float() * v_scale[..., None])[..., :130] - v.permute(0, 2, 3, 1)
    step = v_scale[..., None] if pv == "int8" else v.permute(0, 2, 3, 1).abs() / 8 + v_scale[..., None] / 512
    assert (error.abs() <= step * 0.5001).all()


def test_linear_branch_is_the_one_of_linear_attention():
    q, k, v = inputs()
    blocks = sla.block_map(q, k, 0.5)
    weight, bias = torch.randn(64, 64) / 8, torch.randn(64)
    phi = k.softmax(-1).transpose(1, 2)
    k_sum = phi.sum(2)
    values = phi.transpose(2, 3) @ v.transpose(1, 2) @ weight.T / k_sum[..., None]
    quantized = sage.kv_quantize(k, v, k.mean(1), v.abs().amax(1), pv="int8")
    both = sage.sage_attention(q, *quantized, blocks, 500, pv="int8", linear=(values, k_sum, bias))
    sparse = sage.sage_attention(q, *quantized, blocks, 500, pv="int8")
    want = sla.linear_attention(q, k, v) @ weight.T + bias
    torch.testing.assert_close(both - sparse, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pv", PV_FORMATS)
def test_memory_is_bounded_by_steps_that_change_nothing(pv, monkeypatch):
    q, k, v = inputs(640)
    blocks = sla.block_map(q, k, 0.5)
    whole = sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv)
    monkeypatch.setattr(sage, "_CHUNK_ELEMENTS", 128 * 64 * 2)
    torch.testing.assert_close(sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv), whole, rtol=0, atol=1e-5)

"""The reference of 8-bit sparse attention against float64 attention."""

import math
from functools import partial

import pytest
import torch
from td_pack.kernels.attention.pv_format import PV_FORMATS
from td_pack.kernels.attention.reference import sage, sla
from td_pack.tests.support.sage import assert_within, exact, qkv
from td_pack.tests.support.tensors import relative

inputs = partial(qkv, device="cpu")


@pytest.mark.parametrize("pv", PV_FORMATS)
@pytest.mark.parametrize(
    "length, d, peaked, topk, dtype",
    [(length, 64, False, 1.0, torch.float32) for length in (1, 63, 64, 65, 127, 128, 129)]
    + [(300, d, peaked, 0.5, torch.float32) for d in (64, 128) for peaked in (False, True)]
    + [(500, 64, False, 0.5, dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)],
)
def test_is_attention_within_the_format_and_not_16_bit(pv, length, d, peaked, topk, dtype):
    q, k, v = inputs(length, d, peaked=peaked, dtype=dtype)
    blocks = sla.block_map(q, k, topk)
    got = sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv)
    assert got.dtype == dtype
    assert_within(got, exact(q, k, v, blocks), pv)
    assert length == 1 or relative(got, exact(q, k, v, blocks)) > 5e-3


@pytest.mark.parametrize("pv", PV_FORMATS)
def test_a_constant_added_to_the_keys_changes_nothing(pv):
    q, k, v = inputs(500)
    blocks = sla.block_map(q, k, 0.5)
    shift = 50 * torch.randn(1, 1, 2, 64, generator=torch.Generator().manual_seed(1))
    moved = sage.sage_block_sparse_attention(q, k + shift, v, blocks, pv=pv)
    assert relative(moved, sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv)) < 5e-3


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


@pytest.mark.parametrize("pv", PV_FORMATS)
def test_zeros_stay_finite(pv):
    q, k, v = inputs(130)
    q[:, :128], k[:, :64], v[..., 5] = 0, 0, 0
    got = sage.sage_block_sparse_attention(q, k, v, sla.block_map(q, k, 1.0), pv=pv)
    assert got.isfinite().all() and not got[..., 5].any()


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


@pytest.mark.parametrize("pv", PV_FORMATS)
def test_memory_is_bounded_by_steps_that_change_nothing(pv, monkeypatch):
    q, k, v = inputs(640)
    blocks = sla.block_map(q, k, 0.5)
    whole = sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv)
    monkeypatch.setattr(sage, "_CHUNK_ELEMENTS", 128 * 64 * 2)
    torch.testing.assert_close(sage.sage_block_sparse_attention(q, k, v, blocks, pv=pv), whole, rtol=0, atol=1e-5)

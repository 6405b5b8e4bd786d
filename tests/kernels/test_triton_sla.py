"""Sparse-linear attention in Triton: its block map against the plain torch reference, ties included, and its result
against the definition in float64.

Runs in the interpreter without a GPU (float32 and float16: it does not round to bfloat16), and for real with one."""

from functools import partial

import pytest
import torch
from td_pack.kernels.attention.format import block_count
from td_pack.kernels.attention.reference import sla as reference
from td_pack.kernels.attention.triton import block_selection as maps
from td_pack.kernels.attention.triton import kv_prepare as preparation
from td_pack.kernels.attention.triton import sla as attention
from td_pack.kernels.attention.triton.block_selection import block_map
from td_pack.kernels.attention.triton.kv_prepare import kv_prepare
from td_pack.kernels.attention.triton.sla import block_sparse_attention, sparse_linear_attention
from td_pack.kernels.dispatch import unsupported_dtype
from td_pack.tests.support import checkpoints, tensors
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.poison import poisoned_memory
from td_pack.tests.support.sage import exact, qkv
from td_pack.tests.support.tensors import DTYPE, DTYPES, relative

# Relative L2 error. Float32: sums in another order. 16 bits: P, weights, values and result are rounded once each.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
draw = partial(tensors.draw, device=DEVICE)


def taken(dtype: torch.dtype):
    """A parameter that is skipped where the operator leaves such tensors to plain torch: float32 on a GPU."""
    reason = unsupported_dtype(dtype, DEVICE)
    return pytest.param(dtype, marks=[pytest.mark.skip(reason=reason)] if reason else [])


TAKEN = [taken(dtype) for dtype in DTYPES]


poisoned = poisoned_memory(maps, attention, preparation, reference)


def projection(d: int = 64, dtype: torch.dtype = DTYPE):
    return draw(d, d, seed=2, dtype=dtype) / d**0.5, draw(d, seed=3, dtype=dtype)


def structured_qkv(length, dtype=DTYPE, **options):
    """q, k, v whose rows of scores have a few large ones."""
    q, k, v = qkv(length, dtype=dtype, **options)
    return 2 * q, k + draw(q.shape[-1], seed=1, dtype=q.dtype), v


def assert_is_exact(q, k, v, topk: float, tolerance: float | None = None) -> None:
    """Both branches, for a projection in the type of q."""
    both = projection(q.shape[-1], q.dtype)
    out = sparse_linear_attention(q, k, v, *both, topk=topk)
    assert out.dtype == q.dtype and out.is_contiguous()
    assert relative(out, exact(q, k, v, block_map(q, k, topk), *both)) < (tolerance or TOLERANCE[q.dtype])


# --- the block map ----------------------------------------------------------------------------------------------------


def stable_top(scores: torch.Tensor, selected: int) -> torch.Tensor:
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :selected].sort(dim=-1).values.int()


@pytest.mark.parametrize("n", [1, 2, 31, 33, 512, 1182, maps.MAX_FUSED_BLOCKS, maps.MAX_FUSED_BLOCKS + 1])
def test_top_blocks_are_those_of_a_stable_sort(n):
    random, tied = draw(1, 2, 2, n, seed=n), draw(1, 2, 2, n, seed=n).round()
    tied[0, 0, 0] *= 0.0  # both zeros: equal
    tied[0, 1, 0, n // 2] = float("-inf")
    tied[0, 1, 1, n - 1] = float("nan")
    tied[0, 1, 1, 0] = -float("nan")
    for scores in (random, tied):
        for selected in sorted({1, max(1, n // 10), n}):
            assert torch.equal(maps._top_blocks(scores, selected), stable_top(scores, selected))


@pytest.mark.parametrize("length, block_q", [(1, 64), (65, 128), (500, 64), (500, 128)])
def test_map_of_exact_scores_is_the_reference_map(length, block_q):
    """Tokens equal within a block and small integers: means and scores are exact, ties are frequent."""
    values = draw(2, 1, block_count(length, 128), 2, 64, seed=length).round()
    q, k = values.repeat_interleave(128, 2)[:, :, :length]
    k = k * draw(length // 64 + 1, seed=4).round().repeat_interleave(64)[:length, None, None]
    for topk in (0.01, 0.4, 7.0):
        found, expected = block_map(q, k, topk, block_q), reference.block_map(q, k, topk, block_q)
        assert torch.equal(found.long(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_map_of_random_scores(dtype):
    q, k, _ = structured_qkv(1000, d=128, b=2, dtype=dtype)
    assert torch.equal(block_map(q, k, 0.4).long(), reference.block_map(q, k, 0.4))


# --- both branches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, topk, block_q", [("a", 0.4, 128), ("b", 0.3, 64)])
def test_golden(case, topk, block_q):
    _, golden = checkpoints.golden_case("ops")
    given = (golden[f"{case}.{name}"].to(DEVICE, DTYPE) for name in ("q", "k", "v", "proj_weight", "proj_bias"))
    out = sparse_linear_attention(*given, topk=topk, block_q=block_q)
    # in 16 bits the golden file's float32 inputs are rounded too
    bound = 1e-5 if DTYPE == torch.float32 else 2 * TOLERANCE[DTYPE]
    assert relative(out, golden[f"{case}.out"].to(DEVICE)) < bound


@pytest.mark.parametrize("dtype", TAKEN)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 300])
def test_any_length(length, dtype):
    assert_is_exact(*structured_qkv(length, dtype=dtype), topk=0.4)


@pytest.mark.parametrize("dtype", TAKEN)
def test_head_dim_128_and_more_keys_than_queries(dtype):
    q, k, v = structured_qkv(321, d=128, h=1, dtype=dtype)
    assert_is_exact(q[:, :140], k, v, topk=0.5)


def test_float16_holds_sums_over_large_values():
    q, k, v = structured_qkv(500, dtype=torch.float16)
    assert_is_exact(q, k, 1000 + v, topk=0.4)


def test_a_channel_no_key_uses_has_no_weight():
    q, k, v = structured_qkv(100)
    k[..., 7] = -1000  # phi(k) is exactly 0 there
    assert (kv_prepare(k, v, projection()[0]).values[..., 7, :] == 0).all()
    assert_is_exact(q, k, v, topk=1.0, tolerance=max(1e-4, TOLERANCE[DTYPE]))  # eps times scores of thousands


@pytest.mark.parametrize("view", ["fused", "heads_first"])
def test_strided_views_in_a_batch(view):
    b, length, h, d = 2, 200, 2, 64
    if view == "fused":
        q, k, v = draw(b, length, 3, h, d, dtype=DTYPE).unbind(2)
    else:
        q, k, v = draw(3, b, h, length, d, dtype=DTYPE).transpose(2, 3)
    assert_is_exact(q, k, v, topk=0.5)


@pytest.mark.parametrize("length", [1, 65, 200])
def test_tokens_past_the_end_are_not_read(length):
    padded = torch.full((3, 1, 256, 2, 64), float("nan"), dtype=DTYPE, device=DEVICE)
    padded[:, :, :length] = torch.stack(structured_qkv(length))
    assert_is_exact(*padded[:, :, :length], topk=1.0)


@pytest.mark.parametrize("keys, length", [(64, 200), (32, 200), (16, 65), (16, 256)])
def test_smaller_blocks_give_the_same(monkeypatch, keys, length):
    config = {"BLOCK_M": 32, "BLOCK_N": keys, "num_warps": 4, "num_stages": 1}
    monkeypatch.setattr(attention, "launch_config", lambda *_: config)
    assert_is_exact(*structured_qkv(length), topk=0.5)


# --- the sparse branch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TAKEN)
@pytest.mark.parametrize("topk", [0.4, 1.0])
def test_the_sparse_branch_alone(topk, dtype):
    q, k, v = structured_qkv(300, dtype=dtype)
    out = sparse_linear_attention(q, k, v, None, None, topk=topk)
    assert relative(out, exact(q, k, v, block_map(q, k, topk))) < TOLERANCE[dtype]


def test_large_scores():
    q, k, v = structured_qkv(200)
    q, k = 30 * q, 10 * k  # scores of thousands: exp of any of them overflows
    blocks = block_map(q, k, 1.0)
    # eps times the score
    assert relative(block_sparse_attention(q, k, v, blocks), exact(q, k, v, blocks)) < max(1e-3, TOLERANCE[DTYPE])


def test_no_listed_block_gives_zeros_and_the_reference_map_is_accepted():
    q, k, v = structured_qkv(130)
    out = block_sparse_attention(q, k, v, torch.zeros((1, 2, 2, 0), dtype=torch.int32, device=DEVICE))
    assert torch.equal(out, torch.zeros_like(out))
    blocks = reference.block_map(q, k, 0.5)
    assert blocks.dtype == torch.int64
    assert torch.equal(block_sparse_attention(q, k, v, blocks), block_sparse_attention(q, k, v, blocks.int()))


# --- preparation of k and v -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 64, 65, 129, 2200])  # the last: 35 blocks, two in each part of the sums
def test_kv_prepare(length, dtype):
    _, k, v = structured_qkv(length, h=1, b=2 if length < 200 else 1, dtype=dtype)
    v[..., 5] = 0
    weight, _ = projection(dtype=dtype)
    prepared = kv_prepare(k, v, weight)
    phi, values = k.double().transpose(1, 2).softmax(-1), v.double().transpose(1, 2)
    k_sum = phi.sum(-2)
    assert prepared.values.dtype == dtype
    assert relative(prepared.values, phi.mT @ values @ weight.double().T / k_sum.unsqueeze(-1)) < TOLERANCE[dtype]
    assert relative(prepared.k_sum, k_sum) < 1e-6
    assert relative(prepared.k_pooled, reference._pool(k.double(), 64)) < 1e-6
    assert relative(prepared.k_mean, k.double().mean(1)) < 1e-6
    assert torch.equal(prepared.v_max, v.float().abs().amax(1))

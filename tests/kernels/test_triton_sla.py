"""Sparse-linear attention in Triton against the plain torch reference, a float64 oracle and its own symmetries.

Runs in the interpreter without a GPU (float32 and float16: it does not round to bfloat16), and for real with one."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from td_pack.kernels.attention.format import block_count
from td_pack.kernels.attention.reference import sla as reference
from td_pack.kernels.attention.triton import block_selection as maps
from td_pack.kernels.attention.triton import kv_prepare as preparation
from td_pack.kernels.attention.triton import sla as attention
from td_pack.kernels.attention.triton.block_selection import block_map
from td_pack.kernels.attention.triton.kv_prepare import kv_prepare
from td_pack.kernels.attention.triton.sla import block_sparse_attention, sparse_linear_attention
from td_pack.tests.kernels.aot_cases import sla as aot_cases
from td_pack.tests.support import checkpoints, tensors
from td_pack.tests.support.aot import RDNA
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.poison import poisoned_memory
from td_pack.tests.support.tensors import DTYPES, relative, structured_qkv

# Relative L2 error. Float32: sums in another order. 16 bits: P, weights, values and result are rounded once each.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
draw = partial(tensors.draw, device=DEVICE)
LENGTHS = [1, 63, 64, 65, 127, 128, 129, 300]


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory(maps, attention, preparation, reference):
        yield


def projection(d: int = 64, dtype: torch.dtype = torch.float32):
    return draw(d, d, seed=2, dtype=dtype) / d**0.5, draw(d, seed=3, dtype=dtype)


def oracle(q, k, v, blocks, block_q: int = 128, proj_weight=None, proj_bias=None) -> torch.Tensor:
    """Both branches in float64, with a dense mask."""
    listed = torch.zeros(*blocks.shape[:3], block_count(k.shape[1], 64), dtype=torch.bool, device=q.device)
    listed.scatter_(-1, blocks.long(), True)
    mask = listed.repeat_interleave(block_q, 2)[:, :, : q.shape[1]].repeat_interleave(64, 3)[..., : k.shape[1]]
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if proj_weight is not None:
        phi_q, phi_k = q.softmax(-1), k.softmax(-1)
        linear = phi_q @ (phi_k.mT @ v) / (phi_q @ phi_k.sum(-2).unsqueeze(-1) + 1e-5)
        out = out + linear @ proj_weight.double().T + proj_bias.double()
    return out.transpose(1, 2)


# --- the whole operator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, topk, block_q", [("a", 0.4, 128), ("b", 0.3, 64)])
def test_golden(case, topk, block_q):
    _, golden = checkpoints.golden_case("ops")
    q, k, v, weight, bias = (
        golden[f"{case}.{name}"].to(DEVICE) for name in ("q", "k", "v", "proj_weight", "proj_bias")
    )
    out = sparse_linear_attention(q, k, v, weight, bias, topk=topk, block_q=block_q)
    assert relative(out, golden[f"{case}.out"].to(DEVICE)) < 1e-5
    blocks = block_map(q, k, topk, block_q).long()
    assert torch.equal(torch.zeros_like(golden[f"{case}.block_map"]).scatter_(-1, blocks.cpu(), 1),
                       golden[f"{case}.block_map"])  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
def test_any_length(length, dtype):
    q, k, v = structured_qkv(length, dtype=dtype)
    weight, bias = projection(dtype=dtype)
    blocks = block_map(q, k, 0.4)
    sparse = block_sparse_attention(q, k, v, blocks)
    assert sparse.dtype == dtype and sparse.is_contiguous()
    assert relative(sparse, oracle(q, k, v, blocks)) < TOLERANCE[dtype]
    assert relative(sparse, reference.block_sparse_attention(q, k, v, blocks.long())) < 2 * TOLERANCE[dtype]
    both = sparse_linear_attention(q, k, v, weight, bias, topk=0.4)
    assert both.dtype == dtype and both.is_contiguous()
    assert relative(both, oracle(q, k, v, blocks, 128, weight, bias)) < TOLERANCE[dtype]
    linear = F.linear(reference.linear_attention(q, k, v), weight, bias)
    assert relative(both, reference.block_sparse_attention(q, k, v, blocks.long()) + linear) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("length", [500, 640, 1000])
def test_longer_sequences(length):
    """Several query blocks, a ragged last one, and lengths at which the reference's share of blocks was none."""
    q, k, v = structured_qkv(length, h=1, dtype=torch.float16)
    weight, bias = projection(dtype=torch.float16)
    out = sparse_linear_attention(q, k, v, weight, bias, topk=0.1)
    assert relative(out, oracle(q, k, v, block_map(q, k, 0.1), 128, weight, bias)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_dim_128_and_more_keys_than_queries(dtype):
    q, k, v = structured_qkv(321, d=128, h=1, dtype=dtype)
    q = q[:, :140]
    weight, bias = projection(128, dtype)
    out = sparse_linear_attention(q, k, v, weight, bias, topk=0.5)
    assert relative(out, oracle(q, k, v, block_map(q, k, 0.5), 128, weight, bias)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_linear_branch_alone(dtype):
    q, k, v = structured_qkv(300, dtype=dtype)
    weight, bias = projection(dtype=dtype)
    v[:, :64] = 0  # the one listed block contributes nothing
    k[:, :64] = 8 * q[:, :1]
    q[:, :128] = q[:, :1]
    blocks = block_map(q, k, 0.2)
    assert (blocks[:, :, 0] == 0).all()
    out = sparse_linear_attention(q, k, v, weight, bias, topk=0.2)
    assert relative(out[:, :128], oracle(q, k, v, blocks, 128, weight, bias)[:, :128]) < TOLERANCE[dtype]


def test_float16_holds_sums_over_large_values():
    q, k, v = structured_qkv(500, dtype=torch.float16)
    v = 1000 + v
    weight, bias = projection(dtype=torch.float16)
    out = sparse_linear_attention(q, k, v, weight, bias, topk=0.4)
    assert relative(out, oracle(q, k, v, block_map(q, k, 0.4), 128, weight, bias)) < TOLERANCE[torch.float16]


def test_large_scores():
    q, k, v = structured_qkv(200)
    q, k = 30 * q, 10 * k  # scores of thousands: exp of any of them overflows
    blocks = block_map(q, k, 1.0)
    assert relative(block_sparse_attention(q, k, v, blocks), oracle(q, k, v, blocks)) < 1e-3  # eps times the score


@pytest.mark.parametrize("view", ["fused", "heads_first"])
def test_strided_views(view):
    b, length, h, d = 2, 200, 2, 64
    if view == "fused":
        q, k, v = draw(b, length, 3, h, d).unbind(2)
    else:
        q, k, v = draw(3, b, h, length, d).transpose(2, 3)
    weight, bias = projection()
    expected = sparse_linear_attention(q.contiguous(), k.contiguous(), v.contiguous(), weight, bias, topk=0.5)
    assert torch.equal(sparse_linear_attention(q, k, v, weight, bias, topk=0.5), expected)


@pytest.mark.parametrize("length", [1, 65, 200])
def test_tokens_past_the_end_are_not_read(length):
    q, k, v = structured_qkv(length)
    weight, bias = projection()
    padded = torch.full((3, 1, 256, 2, 64), float("nan"), device=DEVICE)
    padded[:, :, :length] = torch.stack((q, k, v))
    out = sparse_linear_attention(*padded[:, :, :length], weight, bias, topk=1.0)
    assert torch.equal(out, sparse_linear_attention(q, k, v, weight, bias, topk=1.0))


def test_batch_heads_and_repetition_change_no_bit():
    q, k, v = structured_qkv(200, b=2)
    weight, bias = projection()
    out = sparse_linear_attention(q, k, v, weight, bias, topk=0.5)
    assert torch.equal(out, sparse_linear_attention(q, k, v, weight, bias, topk=0.5))
    for i in range(2):
        assert torch.equal(
            out[i : i + 1], sparse_linear_attention(*(x[i : i + 1] for x in (q, k, v)), weight, bias, topk=0.5)
        )
    flipped = sparse_linear_attention(*(x.flip(2) for x in (q, k, v)), weight, bias, topk=0.5)
    assert torch.equal(out.flip(2), flipped)


# --- the sparse branch ------------------------------------------------------------------------------------------------


def test_all_blocks_is_dense_attention():
    q, k, v = structured_qkv(300)
    dense = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert relative(sparse_linear_attention(q, k, v, None, None, topk=1.0), dense) < TOLERANCE[torch.float32]


def test_constant_values_come_out_constant():
    q, k, v = structured_qkv(200)
    out = sparse_linear_attention(q, k, torch.full_like(v, 3.0), None, None, topk=0.5)
    torch.testing.assert_close(out, torch.full_like(out, 3.0), rtol=1e-6, atol=0)


def test_the_order_of_key_blocks_does_not_matter():
    q, k, v = structured_qkv(6 * 64)
    order = torch.tensor([4, 2, 0, 5, 1, 3], device=DEVICE)

    def permuted(x):
        return x.unflatten(1, (6, 64))[:, order].flatten(1, 2)

    weight, bias = projection()
    out = sparse_linear_attention(q, k, v, weight, bias, topk=0.5)
    assert relative(sparse_linear_attention(q, permuted(k), permuted(v), weight, bias, topk=0.5), out) < 1e-6
    found = order[block_map(q, permuted(k), 0.5).long()].sort(-1).values
    assert torch.equal(found, block_map(q, k, 0.5).long())


def test_no_listed_block_gives_zeros():
    q, k, v = structured_qkv(130)
    blocks = torch.zeros((1, 2, 2, 0), dtype=torch.int32, device=DEVICE)
    out = block_sparse_attention(q, k, v, blocks)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("keys, length", [(64, 200), (32, 200), (16, 200), (16, 65), (16, 256)])
def test_smaller_blocks_give_the_same(monkeypatch, keys, length):
    q, k, v = structured_qkv(length)
    weight, bias = projection()
    out = sparse_linear_attention(q, k, v, weight, bias, topk=0.5)
    monkeypatch.setattr(
        attention, "launch_config", lambda *_: {"BLOCK_M": 32, "BLOCK_N": keys, "num_warps": 4, "num_stages": 1}
    )
    assert relative(sparse_linear_attention(q, k, v, weight, bias, topk=0.5), out) < 1e-6


def test_the_reference_map_is_accepted():
    q, k, v = structured_qkv(300)
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


def test_a_channel_no_key_uses_has_no_weight():
    q, k, v = structured_qkv(100)
    k[..., 7] = -1000  # phi(k) is exactly 0 there
    weight, bias = projection()
    assert (kv_prepare(k, v, weight).values[..., 7, :] == 0).all()
    out = sparse_linear_attention(q, k, v, weight, bias, topk=1.0)
    assert (
        relative(out, oracle(q, k, v, block_map(q, k, 1.0), 128, weight, bias)) < 1e-4
    )  # eps times scores of thousands


# --- launch options ---------------------------------------------------------------------------------------------------


def test_the_compiled_cases_are_what_is_launched():
    for case in aot_cases.CASES[:4]:
        assert case.function == "_attention_kernel"
        for target, build in case.targets.items():
            hip = target.startswith("gfx")
            capability = (int(target[3:-2]), 0) if hip else (int(target[3:-1]), int(target[-1]))
            launched = attention.launch_config(capability, hip, case.constexprs["D"])
            given = {**case.constexprs, **build.constexprs}
            compiled = given["BLOCK_M"], given["BLOCK_N"], build.num_warps, build.num_stages
            assert tuple(launched.values()) == compiled, (case.name, target)
    for case in aot_cases.CASES[4:6]:
        assert case.function == "_kv_partial_kernel"
        for target, build in case.targets.items():
            launched = preparation.launch_config(case.constexprs["D"], target in RDNA)
            assert tuple(launched.values()) == (build.num_warps, build.num_stages), (case.name, target)

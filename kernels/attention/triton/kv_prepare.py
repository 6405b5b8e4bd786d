"""What the attention kernels need of k and v, computed in one pass over both.

With phi = softmax over head_dim, and sums over all keys of one head:

    linear branch = (phi(q) KV / (phi(q) . s + 1e-5)) W^T + bias,    KV = phi(k)^T v [D, D],    s = sum phi(k) [D]

The weights phi(q)[d] s[d] / (phi(q) . s + 1e-5) add up to one, so the same branch is `weights @ values + bias` with
values[d] = (KV W^T)[d] / s[d], a mean of projected value rows. Neither factor grows with the number of keys, so both
fit float16. `linear_branch` is that product, for use in a kernel.

The pass over the keys is split in at most SPLITS parts, whose partial sums a second kernel adds in order: no atomics,
and a result that depends neither on the batch nor on torch's TF32 switch.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ...launch import chip_of, launch
from ..format import BLOCK_K

SPLITS = 32  # with it 5 heads fill a GPU; 32 states of D x D floats are small beside k and v
LOG2_E = tl.constexpr(1.4426950408889634)


class PreparedKV(NamedTuple):
    values: torch.Tensor  # [B, H, D, D] in v's dtype, rows are projected value means
    k_sum: torch.Tensor  # [B, H, D] float32, sum of phi(k)
    k_pooled: torch.Tensor  # [B, H, key blocks, D] float32, mean of each block of k
    k_mean: torch.Tensor  # [B, H, D] float32
    v_max: torch.Tensor  # [B, H, D] float32, largest |v| of each channel


@triton.jit
def _exp_rows(x):
    """exp(x - row maximum): softmax over the last dimension, not normalized."""
    return tl.exp2(x * LOG2_E - (tl.max(x, axis=1) * LOG2_E)[:, None])


@triton.jit
def linear_branch(acc, q, p_values, p_k_sum, p_bias, i_bh, D: tl.constexpr):
    """acc [rows, D] float32 + the linear branch of the queries q [rows, D]."""
    o_d = tl.arange(0, D)
    b_phi = _exp_rows(q.to(tl.float32))
    b_weights = b_phi * tl.load(p_k_sum + i_bh * D + o_d)[None, :]
    # The normalizer of phi cancels, except for the 1e-5 of the denominator.
    b_weights *= (1.0 / (tl.sum(b_weights, axis=1) + 1e-5 * tl.sum(b_phi, axis=1)))[:, None]
    b_values = tl.load(p_values + i_bh * D * D + o_d[:, None] * D + o_d[None, :])
    acc = tl.dot(b_weights.to(b_values.dtype), b_values, acc, input_precision="ieee")
    return acc + tl.load(p_bias + o_d).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["L", "N_K", "CHUNK", "H"])
def _kv_partial_kernel(
    p_k, p_v, p_kv, p_k_sum, p_k_total, p_v_max, p_k_pooled,
    k_b, k_l, k_h, v_b, v_l, v_h,
    L, N_K, CHUNK, H,
    D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    i_s, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    o_l, o_d = tl.arange(0, BLOCK_K), tl.arange(0, D)
    p_k += i_b * k_b + i_h * k_h
    p_v += i_b * v_b + i_h * v_h
    k_step, v_step = k_l.to(tl.int64) * BLOCK_K, v_l.to(tl.int64) * BLOCK_K
    b_kv = tl.zeros([D, D], tl.float32)
    b_k_sum = tl.zeros([D], tl.float32)
    b_k_total = tl.zeros([D], tl.float32)
    b_v_max = tl.zeros([D], tl.float32)
    for i_k in tl.range(i_s * CHUNK, tl.minimum(i_s * CHUNK + CHUNK, N_K)):
        count = tl.minimum(L - i_k * BLOCK_K, BLOCK_K)
        m_l = o_l < count
        b_k = tl.load(p_k + i_k * k_step + o_l[:, None] * k_l + o_d[None, :], mask=m_l[:, None], other=0)
        b_v = tl.load(p_v + i_k * v_step + o_l[:, None] * v_l + o_d[None, :], mask=m_l[:, None], other=0)
        b_k = b_k.to(tl.float32)
        b_total = tl.sum(b_k, axis=0)
        tl.store(p_k_pooled + (i_bh * N_K + i_k) * D + o_d, b_total / count)
        b_phi = _exp_rows(b_k)
        m_phi = i_k * BLOCK_K + o_l < L  # compared anew: m_l, held until here, would make an address spill
        b_phi *= tl.where(m_phi, 1.0 / tl.sum(b_phi, axis=1), 0.0)[:, None]
        b_kv = tl.dot(tl.trans(b_phi.to(b_v.dtype)), b_v, b_kv, input_precision="ieee")
        b_k_sum += tl.sum(b_phi, axis=0)
        b_k_total += b_total
        b_v_max = tl.maximum(b_v_max, tl.max(tl.abs(b_v.to(tl.float32)), axis=0))
    i_part = i_bh * tl.num_programs(0) + i_s
    tl.store(p_kv + i_part * D * D + o_d[:, None] * D + o_d[None, :], b_kv)
    tl.store(p_k_sum + i_part * D + o_d, b_k_sum)
    tl.store(p_k_total + i_part * D + o_d, b_k_total)
    tl.store(p_v_max + i_part * D + o_d, b_v_max)


@triton.jit(do_not_specialize=["L", "SPLIT"])
def _kv_finish_kernel(
    p_kv, p_k_sum_part, p_k_total, p_v_max_part, p_weight, p_values, p_k_sum, p_k_mean, p_v_max,
    L, SPLIT,
    D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    i_bh = tl.program_id(1).to(tl.int64)
    o_r, o_d = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, D)
    b_k_sum = tl.zeros([ROWS], tl.float32)
    b_k_total = tl.zeros([ROWS], tl.float32)
    b_v_max = tl.zeros([ROWS], tl.float32)
    for i_s in tl.range(0, SPLIT):
        i_part = i_bh * SPLIT + i_s
        b_k_sum += tl.load(p_k_sum_part + i_part * D + o_r)
        b_k_total += tl.load(p_k_total + i_part * D + o_r)
        b_v_max = tl.maximum(b_v_max, tl.load(p_v_max_part + i_part * D + o_r))
    b_values = tl.zeros([ROWS, D], tl.float32)
    for i_c in tl.range(0, D, CHUNK):  # an exact product keeps both operands in registers
        o_c = i_c + tl.arange(0, CHUNK)
        b_kv = tl.zeros([ROWS, CHUNK], tl.float32)
        for i_s in tl.range(0, SPLIT):
            b_kv += tl.load(p_kv + (i_bh * SPLIT + i_s) * D * D + o_r[:, None] * D + o_c[None, :])
        b_weight = tl.load(p_weight + o_d[:, None] * D + o_c[None, :]).to(tl.float32)
        b_values = tl.dot(b_kv, b_weight.T, b_values, input_precision="ieee")
    b_values /= tl.maximum(b_k_sum, 1e-30)[:, None]  # a channel that no key uses has weight 0 and value 0
    tl.store(p_values + i_bh * D * D + o_r[:, None] * D + o_d[None, :], b_values.to(p_values.dtype.element_ty))
    tl.store(p_k_sum + i_bh * D + o_r, b_k_sum)
    tl.store(p_k_mean + i_bh * D + o_r, b_k_total / L)
    tl.store(p_v_max + i_bh * D + o_r, b_v_max)


def launch_config(d: int, rdna: bool) -> dict[str, int]:
    """Launch config of the pass over the keys by head_dim, chosen from compiled code: RDNA spills with fewer warps."""
    warps = 8 if d == 128 else 4
    return dict(num_warps=2 * warps, num_stages=1) if rdna else dict(num_warps=warps, num_stages=2)


def kv_prepare(k: torch.Tensor, v: torch.Tensor, proj_weight: torch.Tensor, *, block_k: int = BLOCK_K) -> PreparedKV:
    """k, v [B, L, H, D] with a contiguous last dimension, proj_weight [D, D] contiguous, D in {64, 128}."""
    b, length, h, d = k.shape
    n_k = triton.cdiv(length, block_k)
    chunk = triton.cdiv(n_k, SPLITS)  # depends on the length only, so that batching does not change the result
    splits = triton.cdiv(n_k, chunk)

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty((b, h, *shape), dtype=dtype, device=k.device)

    kv, k_sum_part, k_total, v_max_part = new(splits, d, d), new(splits, d), new(splits, d), new(splits, d)
    out = PreparedKV(new(d, d, dtype=v.dtype), new(d), new(n_k, d), new(d), new(d))
    rows = 16
    launch(
        _kv_partial_kernel, (splits, b * h),
        k, v, kv, k_sum_part, k_total, v_max_part, out.k_pooled,
        *k.stride()[:3], *v.stride()[:3],
        length, n_k, chunk, h,
        D=d, BLOCK_K=block_k, enable_fp_fusion=True, **launch_config(d, chip_of(k).rdna),
    )  # fmt: skip
    launch(
        _kv_finish_kernel, (d // rows, b * h),
        kv, k_sum_part, k_total, v_max_part, proj_weight, out.values, out.k_sum, out.k_mean, out.v_max,
        length, splits,
        D=d, ROWS=rows, CHUNK=16, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out

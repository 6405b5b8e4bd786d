"""Sparse-linear attention on 16-bit tensors: softmax over the listed key blocks, plus the linear branch over all keys.

    o = softmax2(q k^T log2(e) / sqrt(D)) v + weights @ values + bias    (the linear branch as in kv_prepare.py)

One program computes BLOCK_M queries of one head. Queries are the fastest index of the grid, so that programs which
run together share a head's k and v in the L2 cache.
"""

import math

import torch
import triton
import triton.language as tl

from ...launch import Chip, chip_of, launch
from ..format import BLOCK_K, BLOCK_Q
from .block_selection import block_map, block_map_pooled
from .kv_prepare import PreparedKV, kv_prepare, linear_branch


@triton.jit
def _attend_block(b_q, p_k, p_v, b_acc, b_max, b_sum, scale, m_k):
    """One step of the online softmax; m_k [keys] tells which keys exist, None means all."""
    if m_k is None:
        b_k, b_v = tl.load(p_k), tl.load(p_v)
        b_s = tl.dot(b_q, b_k.T, input_precision="ieee")
    else:
        b_k, b_v = tl.load(p_k, mask=m_k[:, None], other=0), tl.load(p_v, mask=m_k[:, None], other=0)
        b_s = tl.where(m_k[None, :], tl.dot(b_q, b_k.T, input_precision="ieee"), float("-inf"))
    b_new = tl.maximum(b_max, tl.max(b_s, axis=1) * scale)
    b_p = tl.exp2(b_s * scale - b_new[:, None])
    b_decay = tl.exp2(b_max - b_new)
    b_sum = b_sum * b_decay + tl.sum(b_p, axis=1)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_decay[:, None], input_precision="ieee")
    return b_acc, b_new, b_sum


@triton.jit(do_not_specialize=["L_Q", "L_K", "N_Q", "T", "H"])
def _attention_kernel(
    p_q, p_k, p_v, p_blocks, p_o, p_values, p_k_sum, p_bias,
    q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h,
    L_Q, L_K, N_Q, T, H, scale,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    LINEAR: tl.constexpr,
):  # fmt: skip
    i_m, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    PARTS: tl.constexpr = BLOCK_K // BLOCK_N  # steps of the softmax for each listed block
    o_q, o_k, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, D)
    i_row = i_m.to(tl.int64) * BLOCK_M
    m_q = (o_q < L_Q - i_m * BLOCK_M)[:, None]
    p_q += i_b * q_b + i_h * q_h + i_row * q_l + o_q[:, None] * q_l + o_d[None, :]
    p_k += i_b * k_b + i_h * k_h + o_k[:, None] * k_l + o_d[None, :]
    p_v += i_b * v_b + i_h * v_h + o_k[:, None] * v_l + o_d[None, :]
    p_blocks += (i_bh * N_Q + i_m * BLOCK_M // BLOCK_Q) * T
    k_part, v_part = k_l.to(tl.int64) * BLOCK_N, v_l.to(tl.int64) * BLOCK_N
    k_step, v_step = k_part * PARTS, v_part * PARTS

    b_q = tl.load(p_q, mask=m_q, other=0)
    b_acc = tl.zeros([BLOCK_M, D], tl.float32)
    b_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    # Blocks ascend: only the last one can reach past L_K. Masks for it in the loop would be an eighth of the
    # instructions.
    i_last = tl.load(p_blocks + T - 1, mask=T > 0, other=-1).to(tl.int32)
    n_whole = T - (i_last * BLOCK_K + BLOCK_K > L_K).to(tl.int32)
    i_next = tl.load(p_blocks, mask=T > 0, other=0).to(tl.int32)
    for i_t in tl.range(0, n_whole * PARTS):
        i_k = i_next  # loaded one step ahead, so that the load of the keys need not wait for it
        i_next = tl.load(p_blocks + (i_t + 1) // PARTS, mask=(i_t + 1) // PARTS < T, other=0).to(tl.int32)
        p_k_part, p_v_part = p_k + i_k * k_step, p_v + i_k * v_step
        if PARTS > 1:
            p_k_part += i_t % PARTS * k_part
            p_v_part += i_t % PARTS * v_part
        b_acc, b_max, b_sum = _attend_block(b_q, p_k_part, p_v_part, b_acc, b_max, b_sum, scale, None)
    if n_whole < T:
        p_k += i_last * k_step
        p_v += i_last * v_step
        count = L_K - i_last * BLOCK_K
        if PARTS == 1:
            b_acc, b_max, b_sum = _attend_block(b_q, p_k, p_v, b_acc, b_max, b_sum, scale, o_k < count)
        else:
            for i_part in tl.range(0, tl.cdiv(count, BLOCK_N)):
                m_k = o_k < count - i_part * BLOCK_N
                b_acc, b_max, b_sum = _attend_block(
                    b_q, p_k + i_part * k_part, p_v + i_part * v_part, b_acc, b_max, b_sum, scale, m_k
                )
    b_acc = b_acc / tl.where(b_sum == 0, 1.0, b_sum)[:, None]  # no block listed: zeros
    if LINEAR:
        # Loaded again: queries held over the loop would take registers, and the loop would spill.
        b_acc = linear_branch(b_acc, tl.load(p_q, mask=m_q, other=0), p_values, p_k_sum, p_bias, i_bh, D)
    # Compared anew: the mask of the queries, held over the loop, would make addresses spill in it.
    m_o = (i_row + o_q < L_Q)[:, None]
    p_o += ((i_b * L_Q + i_row) * H + i_h) * D
    tl.store(p_o + (o_q[:, None] * (H * D) + o_d[None, :]), b_acc.to(p_o.dtype.element_ty), mask=m_o)


def launch_config(chip: Chip, d: int) -> dict[str, int]:
    """Launch config by GPU and head_dim: chosen from compiled code (spills, shared memory), not timed."""
    major = chip.capability[0]
    if chip.rdna:
        # RDNA has 256 registers a thread and holds the keys of a whole product in them; RDNA 3 (11) holds each key
        # twice.
        return dict(BLOCK_M=128, BLOCK_N=16 if major == 11 and d == 128 else 32, num_warps=8, num_stages=1)
    # Three stages of keys and values fit in shared memory; 8.6, 8.9 and 12.0 spill in the loop with them.
    roomy = d == 64 or ((major in (9, 10) or chip.capability == (8, 0)) and not chip.hip)
    return dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=3 if roomy else 2)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    prepared: PreparedKV | None,
    proj_bias: torch.Tensor | None,
    block_q: int,
    block_k: int,
) -> torch.Tensor:
    """Attention to the listed blocks, plus the linear branch where the result of `kv_prepare` and the projection's bias
    are given. Shapes as in `block_sparse_attention`."""
    b, length, h, d = q.shape
    o = torch.empty((b, length, h, d), dtype=q.dtype, device=q.device)
    config = launch_config(chip_of(q), d)
    config |= {"BLOCK_M": min(config["BLOCK_M"], block_q), "BLOCK_N": min(config["BLOCK_N"], block_k)}
    values, k_sum = (prepared.values, prepared.k_sum) if prepared else (None, None)
    launch(
        _attention_kernel, (triton.cdiv(length, config["BLOCK_M"]), b * h),
        q, k, v, blocks, o, values, k_sum, proj_bias,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        length, k.shape[1], blocks.shape[2], blocks.shape[3], h, d**-0.5 * math.log2(math.e),
        D=d, BLOCK_Q=block_q, BLOCK_K=block_k, LINEAR=prepared is not None, enable_fp_fusion=True, **config,
    )  # fmt: skip
    return o


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys of the listed blocks, without the linear branch.

    q, k, v [B, L, H, D] with a contiguous last dimension, D in {64, 128}; blocks [B, H, query blocks, T] contiguous
    integers, ascending and unique in a row (T = 0 gives zeros). Returns a contiguous [B, L, H, D] in q's dtype."""
    return attend(q, k, v, blocks, None, None, block_q, block_k)


def sparse_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    proj_weight: torch.Tensor | None,
    proj_bias: torch.Tensor | None,
    *,
    topk: float,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """Both branches; the sparse one alone where proj_weight [D, D] and proj_bias [D] are None. q, k, v [B, L, H, D]
    with a contiguous last dimension -> a contiguous [B, L, H, D] in q's dtype."""
    if proj_weight is None:
        return attend(q, k, v, block_map(q, k, topk, block_q, block_k), None, None, block_q, block_k)
    prepared = kv_prepare(k, v, proj_weight, block_k=block_k)
    blocks = block_map_pooled(q, prepared.k_pooled, topk, block_q)
    return attend(q, k, v, blocks, prepared, proj_bias, block_q, block_k)

"""Sage attention over quantized keys (`sage_attention` of the reference), plus the linear branch.

    o = softmax2(q8 k8^T q_scale k_scale log2(e) / sqrt(D)) v8 v_scale [+ the linear branch as in kv_prepare.py]

One program computes a block of queries of one head and quantizes them itself. Query blocks are the fastest index of the
grid, so that programs which run together share a head's k8 and v8 in the L2 cache.
"""

import math

import torch
import triton
import triton.language as tl

from ...launch import Chip, chip_of, launch
from ...triton_primitives import ROUND
from ..format import BLOCK_K, BLOCK_Q
from ..pv_format import PV_FORMATS
from .block_selection import block_map, block_map_pooled
from .kv_prepare import kv_prepare, linear_branch
from .kv_quantize import kv_quantize, quantize_with_one_scale


@triton.jit
def _attend_block(
    b_acc, b_max, b_sum, b_q8, q_scale, p_k8, p_k_scale, p_v8, v_d, i_k, count, p_shift,
    D: tl.constexpr, BLOCK_K: tl.constexpr, PV: tl.constexpr, SUM16: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax after one more block, of which the first `count` keys exist."""
    o_k, o_d = tl.arange(0, BLOCK_K), tl.arange(0, D)
    b_k8 = tl.load(p_k8 + i_k.to(tl.int64) * (BLOCK_K * D) + (o_k[:, None] * D + o_d[None, :]))
    scale = q_scale * tl.load(p_k_scale + i_k)
    b_s = tl.dot(b_q8, b_k8.T).to(tl.float32)
    if MASKED:
        b_s = tl.where((o_k < count)[None, :], b_s, float("-inf"))
    b_new = tl.maximum(b_max, tl.max(b_s, axis=1) * scale - p_shift)  # the largest weight is 2^p_shift
    b_p = tl.exp2(b_s * scale - b_new[:, None])
    b_decay = tl.exp2(b_max - b_new)
    b_sum = b_sum * b_decay + tl.sum(b_p, axis=1)
    if PV == "fp16":
        b_v8 = tl.load(p_v8 + i_k.to(tl.int64) * (BLOCK_K * D) + (o_k[:, None] * D + o_d[None, :]))
    else:
        b_v8 = tl.load(p_v8 + i_k * BLOCK_K + (o_d[:, None] * v_d + o_k[None, :])).T
    b_acc *= b_decay[:, None]
    if PV == "fp16":
        b_acc = tl.dot(b_p.to(tl.float16), b_v8, b_acc)
    elif PV == "int8":
        # The low byte of the sum is p, rounded half to even: p is 0..127, so nothing needs clamping as in `encode`.
        b_p8 = (b_p + ROUND).to(tl.int32, bitcast=True).to(tl.int8)
        b_acc += tl.dot(b_p8, b_v8).to(tl.float32)
    else:  # not dot(..., acc): on Hopper that would keep the whole sum in the 14-bit fp8 accumulator
        b_acc += tl.dot(b_p.to(tl.float8e4nv), b_v8, out_dtype=tl.float16 if SUM16 else tl.float32).to(tl.float32)
    return b_acc, b_new, b_sum


@triton.jit(do_not_specialize=["L_Q", "L_K", "N_K", "T", "H"])
def _sage_kernel(
    p_q, p_k8, p_k_scale, p_v8, p_v_scale, p_blocks, p_o, p_values, p_k_sum, p_bias,
    q_b, q_l, q_h,
    L_Q, L_K, N_K, T, H, scale, p_shift,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    PV: tl.constexpr, SUM16: tl.constexpr, LINEAR: tl.constexpr,
):  # fmt: skip
    i_q, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // H, i_bh % H
    o_q, o_d = tl.arange(0, BLOCK_Q), tl.arange(0, D)
    i_row = i_q.to(tl.int64) * BLOCK_Q
    m_q = (o_q < L_Q - i_q * BLOCK_Q)[:, None]
    v_d = N_K * BLOCK_K
    p_q += i_b * q_b + i_h * q_h
    p_k8 += i_bh * v_d * D
    p_k_scale += i_bh * N_K
    p_v8 += i_bh * v_d * D
    p_blocks += (i_bh * tl.num_programs(0) + i_q) * T

    b_q = tl.load(p_q + i_row * q_l + (o_q[:, None] * q_l + o_d[None, :]), mask=m_q, other=0)
    b_q8, q_scale = quantize_with_one_scale(b_q.to(tl.float32))
    q_scale *= scale
    b_acc = tl.zeros([BLOCK_Q, D], tl.float32)
    b_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    # Blocks ascend: only the last one can reach past L_K. Masks for it in the loop would be an eighth of the
    # instructions.
    i_last = tl.load(p_blocks + T - 1, mask=T > 0, other=-1).to(tl.int32)
    n_whole = T - (i_last * BLOCK_K + BLOCK_K > L_K).to(tl.int32)
    i_next = tl.load(p_blocks, mask=T > 0, other=0).to(tl.int32)
    for i_t in tl.range(0, n_whole):
        i_k = i_next  # loaded one step ahead, so that the load of the keys need not wait for it
        i_next = tl.load(p_blocks + i_t + 1, mask=i_t + 1 < T, other=0).to(tl.int32)
        b_acc, b_max, b_sum = _attend_block(
            b_acc, b_max, b_sum, b_q8, q_scale, p_k8, p_k_scale, p_v8, v_d, i_k, 0, p_shift,
            D, BLOCK_K, PV, SUM16, MASKED=False,
        )  # fmt: skip
    if n_whole < T:
        b_acc, b_max, b_sum = _attend_block(
            b_acc, b_max, b_sum, b_q8, q_scale, p_k8, p_k_scale, p_v8, v_d, i_last, L_K - i_last * BLOCK_K, p_shift,
            D, BLOCK_K, PV, SUM16, MASKED=True,
        )  # fmt: skip
    b_acc = b_acc / tl.where(b_sum == 0, 1.0, b_sum)[:, None]  # no block listed: zeros
    if PV != "fp16":
        b_acc *= tl.load(p_v_scale + i_bh * D + o_d)[None, :]
    if LINEAR:
        # Loaded again, from addresses computed anew: queries or addresses held over the loop would spill in it.
        b_q = tl.load(p_q + (i_row + o_q)[:, None] * q_l + o_d[None, :], mask=m_q, other=0)
        b_acc = linear_branch(b_acc, b_q, p_values, p_k_sum, p_bias, i_bh, D)
    p_o += ((i_b * L_Q + i_row) * H + i_h) * D
    tl.store(p_o + (o_q[:, None] * (H * D) + o_d[None, :]), b_acc.to(p_o.dtype.element_ty), mask=m_q)


def launch_config(chip: Chip, d: int) -> dict[str, int | bool]:
    """Launch config by GPU and head_dim: chosen from compiled code (registers, spills, shared memory), not timed."""
    if chip.hip:  # on RDNA 8 warps spill in the loop where D = 128
        return dict(SUM16=False, num_warps=16 if chip.rdna and d == 128 else 8, num_stages=1)
    # Consumer chips multiply fp8 twice as fast when they accumulate in float16.
    sum16 = chip.capability == (8, 9) or chip.capability[0] == 12
    return dict(SUM16=sum16, num_warps=4 if d == 64 else 8, num_stages=3)


def sage_attention(
    q: torch.Tensor,
    k8: torch.Tensor,
    k_scale: torch.Tensor,
    v8: torch.Tensor,
    v_scale: torch.Tensor | None,
    blocks: torch.Tensor,
    length: int,
    *,
    pv: str,
    block_q: int = BLOCK_Q,
    linear: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None,
) -> torch.Tensor:
    """q [B, L, H, D] with a contiguous last dimension, D in {64, 128}; `length` keys as from `kv_quantize`; blocks
    [B, H, query blocks, T] contiguous integers, unique in a row (T = 0 gives zeros); `linear` = (values, k_sum of
    `kv_prepare`, bias [D]). Returns a contiguous [B, L, H, D] in q's dtype."""
    b, l_q, h, d = q.shape
    n_k = k_scale.shape[2]
    o = torch.empty((b, l_q, h, d), dtype=q.dtype, device=q.device)
    values, k_sum, bias = linear or (None, None, None)
    launch(
        _sage_kernel, (blocks.shape[2], b * h),
        q, k8, k_scale, v8, v_scale, blocks, o, values, k_sum, bias,
        *q.stride()[:3],
        l_q, length, n_k, blocks.shape[3], h, d**-0.5 * math.log2(math.e), math.log2(PV_FORMATS[pv].p_max),
        D=d, BLOCK_Q=block_q, BLOCK_K=k8.shape[2] // n_k, PV=pv, LINEAR=linear is not None,
        enable_fp_fusion=True, **launch_config(chip_of(q), d),
    )  # fmt: skip
    return o


def sage_block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    *,
    pv: str,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """The sparse branch alone: q, k, v [B, L, H, D] with a contiguous last dimension, `blocks` as `sage_attention`
    takes them -> a contiguous [B, L, H, D] in q's dtype."""
    quantized = kv_quantize(k, v, k.mean(1, dtype=torch.float32), v.abs().amax(1).float(), pv=pv, block_k=block_k)
    return sage_attention(q, *quantized, blocks, k.shape[1], pv=pv, block_q=block_q)


def sage_sparse_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    proj_weight: torch.Tensor | None,
    proj_bias: torch.Tensor | None,
    *,
    topk: float,
    pv: str,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """Both branches; the sparse one alone where proj_weight [D, D] and proj_bias [D] are None. q, k, v [B, L, H, D]
    with a contiguous last dimension -> a contiguous [B, L, H, D] in q's dtype."""
    if proj_weight is None:
        blocks = block_map(q, k, topk, block_q, block_k)
        return sage_block_sparse_attention(q, k, v, blocks, pv=pv, block_q=block_q, block_k=block_k)
    prepared = kv_prepare(k, v, proj_weight, block_k=block_k)
    blocks = block_map_pooled(q, prepared.k_pooled, topk, block_q)
    quantized = kv_quantize(k, v, prepared.k_mean, prepared.v_max, pv=pv, block_k=block_k)
    linear = (prepared.values, prepared.k_sum, proj_bias)
    return sage_attention(q, *quantized, blocks, k.shape[1], pv=pv, block_q=block_q, linear=linear)

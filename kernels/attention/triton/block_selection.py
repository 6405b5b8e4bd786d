"""The key blocks each query block attends to: the T largest dot products of block means, lowest block first at ties.

The means and the scores are computed in float32 by kernels of our own: torch.matmul would use TF32 wherever a user
allowed it (a switch of the whole process), float64 is 64 times slower on a consumer GPU, and in bfloat16 a third of the
rows tie at the cut.
"""

import torch
import triton
import triton.language as tl

from ...launch import launch
from ..format import BLOCK_K, BLOCK_Q

MAX_FUSED_BLOCKS = 4096  # a row of scores that one program holds in registers; longer rows are sorted by torch


@triton.jit(do_not_specialize=["L", "H"])
def _pool_kernel(p_x, p_y, x_b, x_l, x_h, L, H, D: tl.constexpr, BLOCK: tl.constexpr):
    i_n, i_bh = tl.program_id(0), tl.program_id(1).to(tl.int64)
    o_l, o_d = tl.arange(0, BLOCK), tl.arange(0, D)
    count = tl.minimum(L - i_n * BLOCK, BLOCK)
    p_x += (i_bh // H) * x_b + (i_bh % H) * x_h + i_n.to(tl.int64) * BLOCK * x_l
    b_x = tl.load(p_x + o_l[:, None] * x_l + o_d[None, :], mask=(o_l < count)[:, None], other=0)
    tl.store(p_y + (i_bh * tl.num_programs(0) + i_n) * D + o_d, tl.sum(b_x.to(tl.float32), axis=0) / count)


@triton.jit(do_not_specialize=["N_Q", "N_K"])
def _score_kernel(p_q, p_k, p_scores, N_Q, N_K, D: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):
    i_bh = tl.program_id(2).to(tl.int64)
    o_q, o_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_q, m_k = (o_q < N_Q)[:, None], (o_k < N_K)[:, None]
    p_q += i_bh * N_Q * D + o_q[:, None] * D
    p_k += i_bh * N_K * D + o_k[:, None] * D
    b_scores = tl.zeros([BLOCK, BLOCK], tl.float32)
    for i_c in tl.range(0, D, CHUNK):  # an exact product keeps both operands in registers
        o_c = (i_c + tl.arange(0, CHUNK))[None, :]
        b_q, b_k = tl.load(p_q + o_c, mask=m_q, other=0), tl.load(p_k + o_c, mask=m_k, other=0)
        b_scores = tl.dot(b_q, b_k.T, b_scores, input_precision="ieee")
    tl.store(p_scores + (i_bh * N_Q + o_q[:, None]) * N_K + o_k[None, :], b_scores, mask=m_q & m_k.T)


@triton.jit(do_not_specialize=["N_K", "T"])
def _top_kernel(p_scores, p_blocks, N_K, T, WIDTH: tl.constexpr):
    i_row = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, WIDTH)
    b_x = tl.load(p_scores + i_row * N_K + o_k, mask=o_k < N_K, other=0)
    # Unsigned integers in the order of the floats: both zeros are equal, NaN is highest as in torch.sort, and places
    # past the last block are 0.
    b_bits = tl.where(b_x == 0, 0.0, b_x).to(tl.int32, bitcast=True)
    b_bits = tl.where(b_x == b_x, b_bits, 0x7FFFFFFF)
    b_key = tl.where(b_bits < 0, ~b_bits, b_bits ^ -0x80000000).to(tl.uint32, bitcast=True)
    b_key = tl.where(o_k < N_K, b_key, 0)
    cut = tl.zeros([1], tl.uint32)  # becomes the T-th largest key, from its highest bit down
    for i_bit in range(32):
        higher = cut | (tl.full([1], 0x80000000, tl.uint32) >> i_bit)
        cut = tl.where(tl.sum((b_key >= higher).to(tl.int32), axis=0) >= T, higher, cut)
    m_above, m_equal = b_key > cut, b_key == cut
    room = T - tl.sum(m_above.to(tl.int32), axis=0)
    m_taken = m_above | (m_equal & (tl.cumsum(m_equal.to(tl.int32), axis=0) <= room))
    o_t = tl.cumsum(m_taken.to(tl.int32), axis=0) - 1
    tl.store(p_blocks + i_row * T + o_t, o_k, mask=m_taken)


def _top_blocks(scores: torch.Tensor, selected: int) -> torch.Tensor:
    """Indices of the `selected` largest of each row of scores [..., n] float32: int32, ascending, lower index at
    ties."""
    n = scores.shape[-1]
    if n > MAX_FUSED_BLOCKS:
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        return order[..., :selected].sort(dim=-1).values.to(torch.int32)
    blocks = torch.empty((*scores.shape[:-1], selected), dtype=torch.int32, device=scores.device)
    width = max(triton.next_power_of_2(n), 32)
    launch(
        _top_kernel, (scores.numel() // n,),
        scores, blocks, n, selected, WIDTH=width, num_warps=max(1, width // 512), enable_fp_fusion=True,
    )  # fmt: skip
    return blocks


def _pool(x: torch.Tensor, block: int) -> torch.Tensor:
    """[B, L, H, D] -> mean of each block of tokens [B, H, blocks, D] in float32."""
    b, length, h, d = x.shape
    n = triton.cdiv(length, block)
    y = torch.empty((b, h, n, d), dtype=torch.float32, device=x.device)
    launch(
        _pool_kernel, (n, b * h),
        x, y, *x.stride()[:3], length, h, D=d, BLOCK=block, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return y


def block_map_pooled(q: torch.Tensor, k_pooled: torch.Tensor, topk: float, block_q: int = BLOCK_Q) -> torch.Tensor:
    """`block_map` for keys that are already pooled: k_pooled [B, H, key blocks, D] float32 from `kv_prepare`."""
    q_pooled = _pool(q, block_q)
    b, h, n_q, d = q_pooled.shape
    n_k, block = k_pooled.shape[2], 64
    scores = torch.empty((b, h, n_q, n_k), dtype=torch.float32, device=q.device)
    launch(
        _score_kernel, (triton.cdiv(n_k, block), triton.cdiv(n_q, block), b * h),
        q_pooled, k_pooled, scores, n_q, n_k,
        D=d, BLOCK=block, CHUNK=16, num_warps=4, num_stages=2, enable_fp_fusion=True,
    )  # fmt: skip
    return _top_blocks(scores, max(1, min(n_k, int(topk * n_k))))


def block_map(
    q: torch.Tensor, k: torch.Tensor, topk: float, block_q: int = BLOCK_Q, block_k: int = BLOCK_K
) -> torch.Tensor:
    """q, k [B, L, H, D] with a contiguous last dimension -> int32 [B, H, query blocks, T], ascending and unique."""
    return block_map_pooled(q, _pool(k, block_k), topk, block_q)

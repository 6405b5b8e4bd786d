"""Int8 quantizers: `quantize_block`, `quantize_group` and `quantize_row` of the reference.

A program encodes one 128x128 tile, the groups of a part of one, or one row, and reads it once. Multiplications must not
fuse with additions here: x times the multiplier must be rounded before it is rounded to an integer, else a bfloat16 x
that is amax / 2 would get another code.
"""

import math

import torch
import triton
import triton.language as tl

from ...launch import launch
from ...triton_primitives import encode, encode_symmetric, find_amax
from ..format import MIN_AMAX, TILE, empty_codes


@triton.jit(do_not_specialize=["M"])
def _quantize_block_kernel(
    p_x, p_codes, p_scales, M, K, x_b, x_m, x_k, MIN_AMAX: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """x [B, M, K] -> codes [B, M, K], scales [B, ceil(M/TILE), ceil(K/TILE)]; a program for each scale."""
    i_scale = tl.program_id(0)
    n_m, n_k = tl.cdiv(M, TILE), tl.cdiv(K, TILE)
    i_b = (i_scale // (n_m * n_k)).to(tl.int64)
    i_m = (i_scale // n_k % n_m).to(tl.int64) * TILE
    o_m = tl.arange(0, TILE)[:, None]
    o_k = i_scale % n_k * TILE + tl.arange(0, TILE)[None, :]
    m_x = (o_m < M - i_m) & (o_k < K)
    p_x += i_b * x_b + (i_m + o_m) * x_m + o_k.to(tl.int64) * x_k
    b_x = tl.load(p_x, mask=m_x, other=0).to(tl.float32)
    amax = find_amax(b_x, MIN_AMAX)
    tl.store(p_scales + i_scale, amax * (1 / 128))
    p_codes += (i_b * M + i_m) * K + o_m * K + o_k
    tl.store(p_codes, encode(b_x, amax, 128), mask=m_x)


@triton.jit(do_not_specialize=["M"])
def _quantize_group_kernel(
    p_x, p_codes, p_scales, M, K, x_b, x_m, x_k, MIN_AMAX: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """x [B, M, K] -> codes [B, M, K], scales [B, ceil(K/TILE), M]; a program for the groups of ROWS rows."""
    i_group = tl.program_id(0)
    n_m, n_k = tl.cdiv(M, ROWS), tl.cdiv(K, TILE)
    i_b = (i_group // (n_m * n_k)).to(tl.int64)
    i_m = (i_group // n_k % n_m).to(tl.int64) * ROWS
    i_k = i_group % n_k
    o_m, o_k = tl.arange(0, ROWS), i_k * TILE + tl.arange(0, TILE)[None, :]
    m_m = o_m < M - i_m
    m_x = m_m[:, None] & (o_k < K)
    p_x += i_b * x_b + (i_m + o_m)[:, None] * x_m + o_k.to(tl.int64) * x_k
    b_x = tl.load(p_x, mask=m_x, other=0).to(tl.float32)
    b_amax = find_amax(b_x, MIN_AMAX, 1)
    tl.store(p_scales + (i_b * n_k + i_k) * M + i_m + o_m, b_amax * (1 / 127), mask=m_m)
    p_codes += (i_b * M + i_m) * K + o_m[:, None] * K + o_k
    tl.store(p_codes, encode_symmetric(b_x, b_amax[:, None]), mask=m_x)


@triton.jit(do_not_specialize=["M"])
def _quantize_row_kernel(
    p_x, p_codes, p_scales, M, K, x_b, x_m, x_k, MIN_AMAX: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """x [B, M, K] -> codes [B, M, K], scales [B, M]; a program for each row."""
    i_row = tl.program_id(0).to(tl.int64)
    o_k = tl.arange(0, WIDTH)
    p_x += i_row // M * x_b + i_row % M * x_m + o_k.to(tl.int64) * x_k
    b_x = tl.load(p_x, mask=o_k < K, other=0).to(tl.float32)
    amax = find_amax(b_x, MIN_AMAX)
    tl.store(p_scales + i_row, tl.div_rn(amax, 127.0))
    tl.store(p_codes + i_row * K + o_k, encode(b_x, amax, 127), mask=o_k < K)


def quantize_block(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., M, K] -> codes int8 [..., M, K], scales float32 [..., ceil(M/128), ceil(K/128)]."""
    *batch, m, k = x.shape
    codes, scales = empty_codes(x.shape, "block", x.device)
    items = x.reshape(math.prod(batch), m, k)
    launch(
        _quantize_block_kernel, (scales.numel(),),
        items, codes, scales, m, k, *items.stride(), MIN_AMAX, TILE, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, scales


ROWS = 32  # for each program that quantizes by group: 32 elements for each thread of 4 warps


def quantize_group(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., M, K] -> codes int8 [..., M, K], scales float32 [..., ceil(K/128), M]."""
    *batch, m, k = x.shape
    codes, scales = empty_codes(x.shape, "group", x.device)
    items = x.reshape(math.prod(batch), m, k)
    launch(
        _quantize_group_kernel, (len(items) * triton.cdiv(m, ROWS) * triton.cdiv(k, TILE),),
        items, codes, scales, m, k, *items.stride(), MIN_AMAX, TILE, ROWS, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, scales


def quantize_row(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [..., M, K] -> codes int8 [..., M, K], scales float32 [..., M]."""
    *batch, m, k = x.shape
    codes, scales = empty_codes(x.shape, "row", x.device)
    items = x.reshape(math.prod(batch), m, k)
    width = triton.next_power_of_2(k)
    warps = min(max(width // 2048, 1), 16)  # 64 elements a thread
    launch(
        _quantize_row_kernel, (scales.numel(),),
        items, codes, scales, m, k, *items.stride(), MIN_AMAX, width, num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    return codes, scales


QUANTIZERS = {"block": quantize_block, "group": quantize_group, "row": quantize_row}

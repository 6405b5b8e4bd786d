"""Int8 linear layers: the products of the reference.

With weight scales by tile, the int32 sum over 128 of K is exact; it is converted, scaled and added to a float32 sum in
ascending order of K, by an explicit fused multiply-add. By channel the int32 sum is over all of K, so that the loop has
few instructions beside the products: 73 instead of 213 on 9.0 for as many products. Only explicit multiply-adds fuse,
so that the epilogue computes the codes that the quantizer would.
"""

import math

import torch
import triton
import triton.language as tl

from ...launch import Chip, chip_of, launch
from ...triton_primitives import ROUND, ROUND_BITS, encode, encode_symmetric, find_amax
from ..format import MIN_AMAX, TILE, empty_codes, scale_kind
from .quantize import QUANTIZERS


def launch_config(chip: Chip, rows: int, square: bool, by_channel: bool = False) -> dict[str, int]:
    """Launch config by GPU, the rows of the product and the weight's scales; with `square` a program's output is one
    tile of the block-scaled format. RDNA spills with fewer than 16 warps."""
    capability = (0, 0) if chip.hip else chip.capability
    if by_channel:
        sizes = {"BLOCK_M": TILE, "BLOCK_N": 2 * TILE, "BLOCK_K": 64, "MAGIC": False}
        stages = 4 if capability >= (8, 0) else 2  # a CDNA 3 multiprocessor has 64 KB
        return sizes | ({"num_warps": 16, "num_stages": 1} if chip.rdna else {"num_warps": 8, "num_stages": stages})
    if chip.rdna:
        return {
            "BLOCK_M": TILE, "BLOCK_N": TILE, "BLOCK_K": TILE, "MAGIC": False, "num_warps": 16, "num_stages": 1
        }  # fmt: skip
    narrow = not square and rows < 2048 and capability in ((8, 0), (8, 6), (9, 0))
    stages = 4 if narrow else 3 if capability >= (8, 0) else 2
    return {
        "BLOCK_M": TILE,
        "BLOCK_N": 64 if narrow else TILE,
        "BLOCK_K": TILE,
        "MAGIC": capability == (8, 0),
        "num_warps": 4 if narrow else 8,
        "num_stages": stages,
    }


@triton.jit
def _output_block(i, n_m, n_n, GROUP_M: tl.constexpr):
    """Row and column of the i-th program's output block: GROUP_M blocks down, then the next column, so that programs
    which run together share operands in the L2 cache."""
    i_group = i // (GROUP_M * n_n) * GROUP_M
    size = tl.minimum(n_m - i_group, GROUP_M)
    i_rest = i % (GROUP_M * n_n)
    return i_group + i_rest % size, i_rest // size


@triton.jit(do_not_specialize=["B", "M"])
def _matmul_kernel(
    p_x, p_x_scale, p_w, p_w_scale, p_bias, p_y, p_y_scale, p_residual, p_gate, B, M, N, K,
    DTYPE: tl.constexpr, BY: tl.constexpr, BY_CHANNEL: tl.constexpr, Y_BY: tl.constexpr, WHOLE_K: tl.constexpr,
    MIN_AMAX: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr, MAGIC: tl.constexpr,
):  # fmt: skip
    """x [B, M, K] with scales `BY`, w [N, K] with scales by tile or channel -> y [B, M, N]; a program for each
    [BLOCK_M, BLOCK_N] of an item. With `Y_BY`, y is the GELU of the product, as codes by "block" or "group", or in
    float for "row". With a residual, y is residual + gate * product."""
    n_m, n_n, n_k = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), tl.cdiv(K, BLOCK_K)
    i_m, i_n = _output_block(tl.program_id(0), B * n_m, n_n, GROUP_M)
    i_b = i_m // n_m
    row, column = i_m % n_m * BLOCK_M, i_n * BLOCK_N
    first = i_b.to(tl.int64) * M + row  # row of x and y, as [B * M]
    o_m, o_n, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    m_m, m_n = (o_m < M - row)[:, None], o_n < N - column
    # Rows and columns past the end repeat the last one, so that the loop needs no masks and maxima do not change.
    o_x, o_w = tl.minimum(o_m, M - row - 1), tl.minimum(o_n, N - column - 1)
    p_x += first * K + o_x[:, None] * K + o_k[None, :]
    p_w += column.to(tl.int64) * K + o_w[:, None] * K + o_k[None, :]
    if not BY_CHANNEL:
        p_w_scale += column // TILE * n_k
    if BY == "block":
        p_x_scale += (i_b * tl.cdiv(M, TILE) + row // TILE).to(tl.int64) * n_k
    elif BY == "group":
        p_x_scale += i_b.to(tl.int64) * n_k * M + row + o_x

    b_y = tl.zeros([BLOCK_M, BLOCK_N], tl.int32 if BY_CHANNEL else tl.float32)
    for i_k in tl.range(0, n_k):
        if WHOLE_K:
            b_x, b_w = tl.load(p_x + i_k * BLOCK_K), tl.load(p_w + i_k * BLOCK_K)
        else:
            m_k = (o_k < K - i_k * BLOCK_K)[None, :]
            b_x = tl.load(p_x + i_k * BLOCK_K, mask=m_k, other=0)
            b_w = tl.load(p_w + i_k * BLOCK_K, mask=m_k, other=0)
        # Every version of Triton compiles a load of [N, K] and a transposition well, unlike a [K, N] block of pointers.
        if BY_CHANNEL:
            b_y = tl.dot(b_x, b_w.T, b_y, out_dtype=tl.int32)
        else:
            scale = tl.load(p_w_scale + i_k)
            if BY == "block":
                scale *= tl.load(p_x_scale + i_k)
            elif BY == "group":
                scale = tl.broadcast_to((scale * tl.load(p_x_scale + i_k * M))[:, None], [BLOCK_M, BLOCK_N])
            if MAGIC:  # int32 to float32 without the conversion unit
                tl.static_assert(BLOCK_K * 128 * 128 < 1 << 22)  # a larger sum would reach the bits above the integer's
                b_magic = tl.full([BLOCK_M, BLOCK_N], ROUND_BITS, tl.int32)
                b_sum = tl.dot(b_x, b_w.T, b_magic, out_dtype=tl.int32).to(tl.float32, bitcast=True) - ROUND
            else:
                b_sum = tl.dot(b_x, b_w.T, out_dtype=tl.int32).to(tl.float32)
            b_y = tl.fma(b_sum, scale, b_y)

    if BY_CHANNEL:
        b_scale = tl.load(p_x_scale + first + o_x)[:, None] * tl.load(p_w_scale + column + o_w)[None, :]
        b_y = b_y.to(tl.float32) * b_scale
    elif BY == "row":
        b_y *= tl.load(p_x_scale + first + o_x[:, None])
    b_y = b_y.to(DTYPE).to(tl.float32)
    if p_bias is not None:  # a second rounding, as in the reference
        b_bias = tl.load(p_bias + column + o_w).to(DTYPE).to(tl.float32)
        b_y = (b_y + b_bias[None, :]).to(DTYPE).to(tl.float32)
    m_y = m_m & m_n[None, :]
    o_y = first * N + column + o_m[:, None] * N + o_n[None, :]
    if Y_BY is not None:
        # y/2 (1 + tanh(u)) = y / (1 + exp(-2u)) with 2u = 2 sqrt(2/pi) (y + 0.044715 y^3)
        b_u = 1.5957691216057308 * (b_y + 0.044715 * b_y * b_y * b_y)
        b_y = (b_y / (1 + tl.exp(-b_u))).to(DTYPE).to(tl.float32)
        if Y_BY == "group":
            b_amax = find_amax(b_y, MIN_AMAX, 1)
            tl.store(p_y_scale + (i_b.to(tl.int64) * n_n + i_n) * M + row + o_m, b_amax * (1 / 127), mask=o_m < M - row)
            tl.store(p_y + o_y, encode_symmetric(b_y, b_amax[:, None]), mask=m_y)
        elif Y_BY == "row":  # quantized by another kernel, since several programs compute a row
            tl.store(p_y + o_y, b_y.to(DTYPE), mask=m_y)
        else:
            amax = find_amax(b_y, MIN_AMAX)
            tl.store(p_y_scale + i_m.to(tl.int64) * n_n + i_n, amax * (1 / 128))
            tl.store(p_y + o_y, encode(b_y, amax, 128), mask=m_y)
    else:
        if p_residual is not None:
            b_gate = tl.load(p_gate + i_b.to(tl.int64) * N + column + o_n, mask=m_n, other=0).to(tl.float32)
            b_y = tl.fma(b_y, b_gate[None, :], tl.load(p_residual + o_y, mask=m_y, other=0).to(tl.float32))
        tl.store(p_y + o_y, b_y.to(DTYPE), mask=m_y)


_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


def _launch(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    y_scale: torch.Tensor | None,
    residual: torch.Tensor | None,
    gate: torch.Tensor | None,
    dtype: torch.dtype,
    y_by: str | None = None,
) -> None:
    *batch, m, k = codes.shape
    n, items = weight.shape[0], math.prod(batch)
    by_channel = weight_scale.ndim == 1
    config = launch_config(chip_of(codes), items * m, y_scale is not None, by_channel)
    launch(
        _matmul_kernel, (items * triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"]),),
        codes.contiguous(), scales.contiguous(), weight.contiguous(), weight_scale.contiguous(), bias,
        y, y_scale, residual, gate, items, m, n, k,
        DTYPE=_DTYPES[dtype], BY=scale_kind(codes, scales), BY_CHANNEL=by_channel, Y_BY=y_by,
        WHOLE_K=k % config["BLOCK_K"] == 0, MIN_AMAX=MIN_AMAX, TILE=TILE, GROUP_M=8, enable_fp_fusion=False,
        **config,
    )  # fmt: skip


def int8_matmul(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """codes int8 [..., M, K] with block, group or row scales, weight int8 [N, K] -> [..., M, N] in `out_dtype`."""
    y = torch.empty((*codes.shape[:-1], weight.shape[0]), dtype=out_dtype, device=codes.device)
    _launch(codes, scales, weight, weight_scale, bias, y, None, None, None, out_dtype)
    return y


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "block",
) -> torch.Tensor:
    """x [..., M, K], quantized by "block", "group" or "row", times weight int8 [N, K] -> [..., M, N] in x's dtype."""
    codes, scales = QUANTIZERS[activation](x)
    return int8_matmul(codes, scales, weight, weight_scale, bias, out_dtype=x.dtype)


def int8_matmul_gelu_quantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
    by: str = "block",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tanh GELU of `int8_matmul`, quantized in the same kernel by "block" or "group", which lie within a program's
    output, or in a second kernel by "row": codes int8 [..., M, N] and their scales."""
    if by == "row":
        y = torch.empty((*codes.shape[:-1], weight.shape[0]), dtype=out_dtype, device=codes.device)
        _launch(codes, scales, weight, weight_scale, bias, y, None, None, None, out_dtype, by)
        return QUANTIZERS[by](y)
    y, y_scale = empty_codes((*codes.shape[:-1], weight.shape[0]), by, codes.device)
    _launch(codes, scales, weight, weight_scale, bias, y, y_scale, None, None, out_dtype, by)
    return y, y_scale


def int8_matmul_gate_residual(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor,
    gate: torch.Tensor,
) -> torch.Tensor:
    """residual [B, M, N] + gate [B, N] or [B, 1, N] times `int8_matmul` of codes [B, M, K], in the residual's dtype."""
    y = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    gate, residual = gate.to(residual.dtype).contiguous(), residual.contiguous()
    _launch(codes, scales, weight, weight_scale, bias, y, None, residual, gate, residual.dtype)
    return y

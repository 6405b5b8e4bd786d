"""Int8 linear layers with 128x128 weight scales: the products of the reference.

The int32 sum over 128 of K is exact; it is converted, scaled and added to a float32 sum in ascending order of K, by the
one fused multiply-add that is written out. Elsewhere nothing fuses, so that the codes of the epilogue round as the
quantizer's.
"""

import math

import torch
import triton
import triton.language as tl

from ...amd import on_rdna
from ...triton_primitives import ROUND, ROUND_BITS, encode, encode_symmetric, find_amax
from ..format import MIN_AMAX, TILE, empty_codes, scale_kind
from .quantize import QUANTIZERS


def launch_config(capability: tuple[int, int], rows: int, square: bool, rdna: bool = False) -> dict[str, int]:
    """Launch config by compute capability (of ROCm devices: (0, 0)) and the rows of the product; with `square` a
    program's output is one tile of the block-scaled format. RDNA spills with fewer than 16 warps."""
    if rdna:
        return {"BLOCK_M": TILE, "BLOCK_N": TILE, "MAGIC": False, "num_warps": 16, "num_stages": 1}
    narrow = not square and rows < 2048 and capability in ((8, 0), (8, 6), (9, 0))
    stages = 4 if narrow else 3 if capability >= (8, 0) else 2
    return {
        "BLOCK_M": TILE,
        "BLOCK_N": 64 if narrow else TILE,
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
    DTYPE: tl.constexpr, BY: tl.constexpr, Y_BY: tl.constexpr, WHOLE_K: tl.constexpr, MIN_AMAX: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr, MAGIC: tl.constexpr,
):  # fmt: skip
    """x [B, M, K] with scales `BY`, w [N, K] -> y [B, M, N]; a program for each [BLOCK_M, BLOCK_N] of an item. With
    y_scale, y is the codes of the GELU, by `Y_BY`; with residual, it is added."""
    n_m, n_n, n_k = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), tl.cdiv(K, TILE)
    i_m, i_n = _output_block(tl.program_id(0), B * n_m, n_n, GROUP_M)
    i_b = i_m // n_m
    row, column = i_m % n_m * BLOCK_M, i_n * BLOCK_N
    first = i_b.to(tl.int64) * M + row  # row of x and y, as [B * M]
    o_m, o_n, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, TILE)
    m_m, m_n = (o_m < M - row)[:, None], o_n < N - column
    # rows and columns behind the last repeat it, so the loop needs no masks and a maximum stays what it is
    o_x, o_w = tl.minimum(o_m, M - row - 1), tl.minimum(o_n, N - column - 1)
    p_x += first * K + o_x[:, None] * K + o_k[None, :]
    p_w += column.to(tl.int64) * K + o_w[:, None] * K + o_k[None, :]
    p_w_scale += column // TILE * n_k
    if BY == "block":
        p_x_scale += (i_b * tl.cdiv(M, TILE) + row // TILE).to(tl.int64) * n_k
    elif BY == "group":
        p_x_scale += i_b.to(tl.int64) * n_k * M + row + o_x

    b_y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i_k in tl.range(0, n_k):
        if WHOLE_K:
            b_x, b_w = tl.load(p_x + i_k * TILE), tl.load(p_w + i_k * TILE)
        else:
            m_k = (o_k < K - i_k * TILE)[None, :]
            b_x = tl.load(p_x + i_k * TILE, mask=m_k, other=0)
            b_w = tl.load(p_w + i_k * TILE, mask=m_k, other=0)
        scale = tl.load(p_w_scale + i_k)
        if BY == "block":
            scale *= tl.load(p_x_scale + i_k)
        elif BY == "group":
            scale = tl.broadcast_to((scale * tl.load(p_x_scale + i_k * M))[:, None], [BLOCK_M, BLOCK_N])
        # loading [N, K] and transposing is what every version compiles well, unlike a [K, N] tile of pointers
        if MAGIC:  # int32 to float32 without the conversion unit
            tl.static_assert(TILE * 128 * 128 < 1 << 22)  # a larger sum would reach the bits above those of the integer
            b_magic = tl.full([BLOCK_M, BLOCK_N], ROUND_BITS, tl.int32)
            b_sum = tl.dot(b_x, b_w.T, b_magic, out_dtype=tl.int32).to(tl.float32, bitcast=True) - ROUND
        else:
            b_sum = tl.dot(b_x, b_w.T, out_dtype=tl.int32).to(tl.float32)
        b_y = tl.fma(b_sum, scale, b_y)

    if BY == "row":
        b_y *= tl.load(p_x_scale + first + o_x[:, None])
    b_y = b_y.to(DTYPE).to(tl.float32)
    if p_bias is not None:  # a second rounding, as in the reference
        b_bias = tl.load(p_bias + column + o_w).to(DTYPE).to(tl.float32)
        b_y = (b_y + b_bias[None, :]).to(DTYPE).to(tl.float32)
    m_y = m_m & m_n[None, :]
    o_y = first * N + column + o_m[:, None] * N + o_n[None, :]
    if p_y_scale is not None:
        # y/2 (1 + tanh(u)) = y / (1 + exp(-2u)) with 2u = 2 sqrt(2/pi) (y + 0.044715 y^3)
        b_u = 1.5957691216057308 * (b_y + 0.044715 * b_y * b_y * b_y)
        b_y = (b_y / (1 + tl.exp(-b_u))).to(DTYPE).to(tl.float32)
        if Y_BY == "group":
            b_amax = find_amax(b_y, MIN_AMAX, 1)
            tl.store(p_y_scale + (i_b.to(tl.int64) * n_n + i_n) * M + row + o_m, b_amax * (1 / 127), mask=o_m < M - row)
            tl.store(p_y + o_y, encode_symmetric(b_y, b_amax[:, None]), mask=m_y)
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
    y_by: str = "block",
) -> None:
    *batch, m, k = codes.shape
    n, items = weight.shape[0], math.prod(batch)
    rocm = torch.version.hip or not codes.is_cuda
    capability = (0, 0) if rocm else torch.cuda.get_device_capability(codes.device)
    config = launch_config(capability, items * m, square=y_scale is not None, rdna=on_rdna(codes))
    with torch.cuda.device_of(codes):
        _matmul_kernel[(items * triton.cdiv(m, config["BLOCK_M"]) * triton.cdiv(n, config["BLOCK_N"]),)](
            codes.contiguous(), scales.contiguous(), weight.contiguous(), weight_scale.contiguous(), bias,
            y, y_scale, residual, gate, items, m, n, k,
            DTYPE=_DTYPES[dtype], BY=scale_kind(codes, scales), Y_BY=y_by, WHOLE_K=k % TILE == 0,
            MIN_AMAX=MIN_AMAX, TILE=TILE, GROUP_M=8, enable_fp_fusion=False, **config,
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
    """codes int8 [..., M, K] with block, group or row scales, weight int8 [N, K] -> [..., M, N]."""
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
    """x [..., M, K], quantized by "block", "group" or "row", times weight int8 [N, K]."""
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
    """The tanh GELU of `int8_matmul`, quantized by "block" or "group": a program's output is a tile of the next layer's
    input."""
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
    """residual [B, M, N] + gate [B, N] or [B, 1, N] times `int8_matmul` of codes [B, M, K]."""
    y = torch.empty(residual.shape, dtype=residual.dtype, device=residual.device)
    gate, residual = gate.to(residual.dtype).contiguous(), residual.contiguous()
    _launch(codes, scales, weight, weight_scale, bias, y, None, residual, gate, residual.dtype)
    return y

"""Dequantizing bitsandbytes' 4-bit weights: `nf4_dequantize` of the reference.

A program dequantizes whole blocks, each of which has one scale. Products must not fuse with additions: a scale is
rounded between the two, as in bitsandbytes, so that the results are bit-equal."""

import torch
import triton
import triton.language as tl

from ..launch import launch

ELEMENTS = 4096  # of the weight, for a program


@triton.jit(do_not_specialize=["B"])
def _nf4_dequantize_kernel(
    p_codes, p_absmax, p_map, p_nested_absmax, p_nested_map, p_out, offset, N, BYTES, B,
    NESTED: tl.constexpr, BLOCKSIZE: tl.constexpr, NESTED_BLOCKSIZE: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """codes [BYTES] -> out [N], BYTES = ceil(N/2), B = ceil(N/BLOCKSIZE); a program for BLOCKS blocks.

    N and BYTES are specialized: where they are known to be multiples of 16, masked loads and stores stay 16 bytes
    wide."""
    HALF: tl.constexpr = BLOCKSIZE // 2
    o_b = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    m_b = o_b < B
    if NESTED:
        b_index = tl.load(p_absmax + o_b, mask=m_b, other=0).to(tl.int32)
        b_outer = tl.load(p_nested_absmax + o_b // NESTED_BLOCKSIZE, mask=m_b, other=0)
        b_scale = tl.load(p_nested_map + b_index) * b_outer + offset
    else:
        b_scale = tl.load(p_absmax + o_b, mask=m_b, other=0)
    o_byte = o_b[:, None] * HALF + tl.arange(0, HALF)[None, :]
    b_codes = tl.load(p_codes + o_byte, mask=o_byte < BYTES, other=0).to(tl.int32)
    b_high = tl.load(p_map + (b_codes >> 4)) * b_scale[:, None]
    b_low = tl.load(p_map + (b_codes & 15)) * b_scale[:, None]
    o_out = o_b[:, None] * BLOCKSIZE + tl.arange(0, BLOCKSIZE)[None, :]
    b_out = tl.interleave(b_high, b_low).to(p_out.dtype.element_ty)
    tl.store(p_out + o_out, b_out, mask=o_out < N)


def nf4_dequantize(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    quant_map: torch.Tensor,
    nested_absmax: torch.Tensor | None,
    nested_quant_map: torch.Tensor | None,
    nested_offset: float,
    blocksize: int,
    nested_blocksize: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """codes uint8 [ceil(N/2)], absmax [ceil(N/blocksize)] uint8 (float32 without nested_*) -> [rows, columns] in
    `dtype`, N = rows * columns."""
    out = torch.empty((rows, columns), dtype=dtype, device=codes.device)
    nested = nested_absmax is not None
    blocks = max(1, ELEMENTS // blocksize)
    launch(
        _nf4_dequantize_kernel, (triton.cdiv(len(absmax), blocks),),
        codes, absmax, quant_map, nested_absmax if nested else absmax, nested_quant_map if nested else absmax, out,
        nested_offset, rows * columns, codes.numel(), len(absmax),
        nested, blocksize, nested_blocksize if nested else 1, blocks,
        num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
    return out

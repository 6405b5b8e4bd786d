"""LayerNorm(x) * (1 + scale) + shift in one pass over x, optionally quantised for the int8 linear layers that follow.

x [B, L, W] with any token stride, shift and scale [B, frames, W] with any batch and frame strides -> x's dtype [B, L, W],
or int8 codes [B, L, W] and float32 row_scales [B, L]. The host takes two passes, rounding in between, and the quantiser two more.
"""

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: in the sum the integer, halves to even, stands in the low bits


@triton.jit(do_not_specialize=["L", "FRAME"])
def _layer_norm_modulate_kernel(
    p_x,
    p_shift,
    p_scale,
    p_y,
    p_row_scales,
    eps,
    L,
    FRAME,
    x_b,
    x_l,
    shift_b,
    shift_f,
    scale_b,
    scale_f,
    WIDTH: tl.constexpr,
    WIDTH_PADDED: tl.constexpr,
    QUANTIZE: tl.constexpr,
):
    """One token; `FRAME` tokens share a shift and a scale."""
    i_l = tl.program_id(0).to(tl.int64)
    i_b = tl.program_id(1).to(tl.int64)
    i_f = i_l // FRAME
    i_row = i_b * L + i_l
    o_w = tl.arange(0, WIDTH_PADDED)
    m_w = o_w < WIDTH
    b_x = tl.load(p_x + i_b * x_b + i_l * x_l + o_w, mask=m_w, other=0.0).to(tl.float32)
    b_shift = tl.load(p_shift + i_b * shift_b + i_f * shift_f + o_w, mask=m_w, other=0.0).to(tl.float32)
    b_scale = tl.load(p_scale + i_b * scale_b + i_f * scale_f + o_w, mask=m_w, other=0.0).to(tl.float32)

    b_x = tl.where(m_w, b_x - tl.sum(b_x) / WIDTH, 0.0)
    rstd = tl.rsqrt(tl.sum(b_x * b_x) / WIDTH + eps)
    b_y = b_x * rstd * (1 + b_scale) + b_shift
    if QUANTIZE:
        # The bits of magnitudes are ordered like the magnitudes, with NaN above all; a maximum of floats would drop NaN.
        bits = tl.max(b_y.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        largest = bits.to(tl.float32, bitcast=True)
        largest = tl.where(largest < 1e-8, 1e-8, largest)
        b_y = (b_y * tl.div_rn(127.0, largest) + _ROUND).to(tl.int32, bitcast=True)
        tl.store(p_row_scales + i_row, tl.div_rn(largest, 127.0))
    tl.store(p_y + i_row * WIDTH + o_w, b_y.to(p_y.dtype.element_ty), mask=m_w)


def _launch(x, shift, scale, out, row_scales, eps: float) -> None:
    b, length, width = x.shape
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _layer_norm_modulate_kernel[(length, b)](
            x,
            shift,
            scale,
            out,
            row_scales,
            eps,
            length,
            triton.cdiv(length, shift.shape[1]),
            *x.stride()[:2],
            *shift.stride()[:2],
            *scale.stride()[:2],
            WIDTH=width,
            WIDTH_PADDED=triton.next_power_of_2(width),
            QUANTIZE=row_scales is not None,
            num_warps=4 if width <= 2048 else 8,
            enable_fp_fusion=True,
        )


def layer_norm_modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float) -> torch.Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, shift, scale, out, None, eps)
    return out


def layer_norm_modulate_quantize(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    row_scales = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    _launch(x, shift, scale, codes, row_scales, eps)
    return codes, row_scales

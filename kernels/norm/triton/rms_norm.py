"""rope(x / rms(x) * weight) in one pass over x, where rms spans all heads. ComfyUI takes two passes; comfy-kitchen's
fused kernel normalizes each head by itself, which is another function.

x [B, L, H * D] with any token stride, weight [H * D], freqs [1, L, 1, D/2, 2, 2] float32 -> [B, L, H, D]; D a power of
2.
"""

import torch
import triton
import triton.language as tl

from ...launch import launch


@triton.jit(do_not_specialize=["L"])
def _rms_norm_rope_kernel(
    p_x,
    p_weight,
    p_freqs,
    p_y,
    eps,
    L,
    x_b,
    x_l,
    HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    D: tl.constexpr,
):
    """One token: its heads are the rows of a [HEADS_PADDED, D] block."""
    i_l = tl.program_id(0).to(tl.int64)
    i_b = tl.program_id(1).to(tl.int64)
    o_h = tl.arange(0, HEADS_PADDED)[:, None]
    o_w = o_h * D + tl.arange(0, D)[None, :]
    m_h = o_h < HEADS
    b_x = tl.load(p_x + i_b * x_b + i_l * x_l + o_w, mask=m_h, other=0.0).to(tl.float32)
    b_w = tl.load(p_weight + o_w, mask=m_h, other=0.0).to(tl.float32)
    rstd = tl.rsqrt(tl.sum(b_x * b_x) / (HEADS * D) + eps)
    b_y = (b_x * rstd * b_w).to(p_y.dtype.element_ty).to(tl.float32)

    even, odd = tl.split(b_y.reshape(HEADS_PADDED, D // 2, 2))
    b_f = tl.load(p_freqs + i_l * (D * 2) + tl.arange(0, D * 2)).reshape(1, D // 2, 2, 2)
    column_0, column_1 = tl.split(b_f)
    f_00, f_10 = tl.split(column_0)
    f_01, f_11 = tl.split(column_1)
    b_o = tl.join(f_00 * even + f_01 * odd, f_10 * even + f_11 * odd).reshape(HEADS_PADDED, D)
    tl.store(p_y + (i_b * L + i_l) * (HEADS * D) + o_w, b_o.to(p_y.dtype.element_ty), mask=m_h)


def rms_norm_rope(
    x: torch.Tensor, weight: torch.Tensor, freqs: torch.Tensor, *, heads: int, eps: float
) -> torch.Tensor:
    """Rotary embedding of the RMS-normalized x [B, L, H * D]: [B, L, H, D] in x's dtype; see `custom_ops`."""
    b, length, width = x.shape
    out = torch.empty((b, length, heads, width // heads), dtype=x.dtype, device=x.device)
    launch(
        _rms_norm_rope_kernel, (length, b),
        x, weight, freqs.contiguous(), out, eps, length, *x.stride()[:2],
        HEADS=heads, HEADS_PADDED=triton.next_power_of_2(heads), D=width // heads,
        num_warps=4 if width <= 2048 else 8, enable_fp_fusion=True,
    )  # fmt: skip
    return out

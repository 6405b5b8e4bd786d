"""SiLU(x / rms(x) * weight) over the channels of each pixel, written behind the two frames before it, in one pass.

x [B, C, T, H, W], past [B, C, 2, H, W] -> [B, C, 2 + T, H, W], and past becomes its last two frames. A frame is a
matrix of pixels and channels, either of which may be contiguous. ComfyUI takes nine passes.
"""

import torch
import triton
import triton.language as tl

from ...launch import launch
from ..format import PAST, empty_frames

_ELEMENTS = 4096  # of a program's block
_MIN_NORM = 1e-12  # of torch.nn.functional.normalize


@triton.jit(do_not_specialize=["T", "PIXELS"])
def _rms_norm_silu_pad_kernel(
    p_x, p_weight, p_past, p_y, scale, T, PIXELS,
    x_b, x_c, x_t, x_p, past_b, past_c, past_t, past_p, y_b, y_c, y_t, y_p,
    C: tl.constexpr, C_PADDED: tl.constexpr, BLOCK: tl.constexpr, MIN_NORM: tl.constexpr,
):  # fmt: skip
    """BLOCK pixels of all frames of an item. p_past None: nothing is before y."""
    o_p = (tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None]
    o_c = tl.arange(0, C_PADDED).to(tl.int64)[None, :]
    i_b = tl.program_id(1).to(tl.int64)
    mask = (o_p < PIXELS) & (o_c < C)
    p_x += i_b * x_b + o_p * x_p + o_c * x_c
    p_y += i_b * y_b + o_p * y_p + o_c * y_c
    b_w = tl.load(p_weight + o_c, mask=o_c < C, other=0.0).to(tl.float32)
    if p_past is not None:
        p_past += i_b * past_b + o_p * past_p + o_c * past_c
        b_0 = tl.load(p_past, mask=mask, other=0.0)
        b_1 = tl.load(p_past + past_t, mask=mask, other=0.0)
        tl.store(p_y, b_0, mask=mask)
        tl.store(p_y + y_t, b_1, mask=mask)
        p_y += 2 * y_t
    else:
        b_1 = tl.zeros([BLOCK, C_PADDED], p_y.dtype.element_ty)
        b_0 = b_1
    for _ in range(T):
        b_x = tl.load(p_x, mask=mask, other=0.0).to(tl.float32)
        norm = tl.maximum(tl.sqrt(tl.sum(b_x * b_x, 1)), MIN_NORM, propagate_nan=tl.PropagateNan.ALL)
        b_v = b_x * (scale / norm)[:, None] * b_w
        b_v = (b_v / (1.0 + tl.exp(-b_v))).to(p_y.dtype.element_ty)
        tl.store(p_y, b_v, mask=mask)
        b_0 = b_1
        b_1 = b_v
        p_x += x_t
        p_y += y_t
    if p_past is not None:
        tl.debug_barrier()  # other threads may have read what this one writes
        tl.store(p_past, b_0, mask=mask)
        tl.store(p_past + past_t, b_1, mask=mask)


def rms_norm_silu_pad(x: torch.Tensor, weight: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
    """SiLU(x / rms(x) * weight) behind the two frames before it, which `past` is changed to the last two of; see
    `custom_ops`."""
    b, c, t, h, w = x.shape
    x = x if x.stride(3) == x.stride(4) * w else x.contiguous()
    out = empty_frames(x, t + (0 if past is None else PAST))
    padded = triton.next_power_of_2(c)
    block = max(1, _ELEMENTS // padded)
    launch(
        _rms_norm_silu_pad_kernel, (triton.cdiv(h * w, block), b),
        x, weight, past, out, c**0.5, t, h * w, *_strides(x), *_strides(out if past is None else past), *_strides(out),
        C=c, C_PADDED=padded, BLOCK=block, MIN_NORM=_MIN_NORM, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return out


def _strides(x: torch.Tensor) -> tuple[int, int, int, int]:
    """Of items, channels, frames and pixels."""
    return x.stride(0), x.stride(1), x.stride(2), x.stride(4)

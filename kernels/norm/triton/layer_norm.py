"""LayerNorm(x) * (1 + scale) + shift in one pass over x, optionally quantized for the int8 linear layers that follow.

x [B, L, W] with any token stride, shift and scale [B, frames, W] with any batch and frame strides -> x's dtype [B, L,
W], or int8 codes [B, L, W] and float32 scales by row, by group or by block. The host takes two passes, rounding in
between, and the quantizer two more. A tile of the block-scaled format spans 128 tokens and a part of their width, so
quantizing by block takes a pass for the tokens' mean and variance first.
"""

import torch
import triton
import triton.language as tl

from ...int8.format import MIN_AMAX, TILE, empty_codes
from ...launch import launch
from ...triton_primitives import encode, encode_symmetric, find_amax


@triton.jit
def _load_row(p, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """A row in two parts, float32 [FIRST] and [REST]; 0 past its end."""
    o_b = FIRST + tl.arange(0, REST)
    b_a = tl.load(p + tl.arange(0, FIRST)).to(tl.float32)
    b_b = tl.load(p + o_b) if FIRST + REST == WIDTH else tl.load(p + o_b, mask=o_b < WIDTH, other=0.0)
    return b_a, b_b.to(tl.float32)


@triton.jit
def _center_row(p_x, eps, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr):
    """The two parts of a row minus its mean, 0 past its end; the mean, 1/std."""
    b_a, b_b = _load_row(p_x, WIDTH, FIRST, REST)
    mean = (tl.sum(b_a) + tl.sum(b_b)) / WIDTH
    b_a -= mean
    b_b = b_b - mean if FIRST + REST == WIDTH else tl.where(FIRST + tl.arange(0, REST) < WIDTH, b_b - mean, 0.0)
    return b_a, b_b, mean, tl.rsqrt((tl.sum(b_a * b_a) + tl.sum(b_b * b_b)) / WIDTH + eps)


@triton.jit
def _encode_groups(b_y, p_scales, L, n, MIN_AMAX: tl.constexpr, SIZE: tl.constexpr):
    """int8 codes of a part of a row, the scales of its groups of SIZE, of which `n` are within the row, at p_scales."""
    GROUPS: tl.constexpr = b_y.shape[0] // SIZE
    b_groups = tl.reshape(b_y, [GROUPS, SIZE])
    b_amax = find_amax(b_groups, MIN_AMAX, 1)
    o_g = tl.arange(0, GROUPS)
    tl.store(p_scales + o_g.to(tl.int64) * L, b_amax * (1 / 127), mask=o_g < n)
    return tl.reshape(encode_symmetric(b_groups, b_amax[:, None]), b_y.shape)


@triton.jit(do_not_specialize=["L", "FRAME"])
def _layer_norm_modulate_kernel(
    p_x, p_shift, p_scale, p_y, p_y_scales, eps, L, FRAME,
    x_b, x_l, shift_b, shift_f, scale_b, scale_f,
    WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr, BY: tl.constexpr, MIN_AMAX: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """One token; `FRAME` tokens share a shift and a scale. BY: None, or how y is quantized, "row" or "group"."""
    i_l, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    i_f = i_l // FRAME
    i_row = i_b * L + i_l
    b_xa, b_xb, _, rstd = _center_row(p_x + i_b * x_b + i_l * x_l, eps, WIDTH, FIRST, REST)
    b_shift_a, b_shift_b = _load_row(p_shift + i_b * shift_b + i_f * shift_f, WIDTH, FIRST, REST)
    b_scale_a, b_scale_b = _load_row(p_scale + i_b * scale_b + i_f * scale_f, WIDTH, FIRST, REST)
    if BY == "group":  # of the rounded values, as if they were quantized afterwards; what fuses is written out
        b_ya = tl.fma(b_xa * rstd, 1 + b_scale_a, b_shift_a).to(p_x.dtype.element_ty).to(tl.float32)
        b_yb = tl.fma(b_xb * rstd, 1 + b_scale_b, b_shift_b).to(p_x.dtype.element_ty).to(tl.float32)
    else:
        b_ya = b_xa * rstd * (1 + b_scale_a) + b_shift_a
        b_yb = b_xb * rstd * (1 + b_scale_b) + b_shift_b
    if BY == "group" and FIRST >= TILE:
        n = tl.cdiv(WIDTH, TILE)
        n_a = FIRST // TILE
        p_y_scales += i_b * n * L + i_l
        b_ya = _encode_groups(b_ya, p_y_scales, L, n_a, MIN_AMAX, TILE)
        b_yb = _encode_groups(b_yb, p_y_scales + tl.full([], n_a, tl.int64) * L, L, n - n_a, MIN_AMAX, min(TILE, REST))
    elif BY is not None:  # one scale; of a row that is no longer than a group, by group too
        amax = tl.maximum(find_amax(b_ya, MIN_AMAX), find_amax(b_yb, MIN_AMAX), propagate_nan=tl.PropagateNan.ALL)
        tl.store(p_y_scales + i_row, amax * (1 / 127) if BY == "group" else tl.div_rn(amax, 127.0))
        b_ya, b_yb = encode_symmetric(b_ya, amax), encode_symmetric(b_yb, amax)
    o_b = FIRST + tl.arange(0, REST)
    p_y += i_row * WIDTH
    tl.store(p_y + tl.arange(0, FIRST), b_ya.to(p_y.dtype.element_ty))
    tl.store(p_y + o_b, b_yb.to(p_y.dtype.element_ty), mask=o_b < WIDTH)


@triton.jit(do_not_specialize=["L"])
def _statistics_kernel(
    p_x, p_statistics, eps, L, x_b, x_l, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr
):  # fmt: skip
    """Mean and 1/std of one token: statistics [B, L, 2] float32."""
    i_l, i_b = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    _, _, mean, rstd = _center_row(p_x + i_b * x_b + i_l * x_l, eps, WIDTH, FIRST, REST)
    p_statistics += (i_b * L + i_l) * 2
    tl.store(p_statistics, mean)
    tl.store(p_statistics + 1, rstd)


@triton.jit(do_not_specialize=["L", "FRAME"])
def _modulate_quantize_block_kernel(
    p_x, p_statistics, p_shift, p_scale, p_codes, p_scales, L, FRAME, WIDTH,
    x_b, x_l, shift_b, shift_f, scale_b, scale_f,
    ONE_FRAME: tl.constexpr, MIN_AMAX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One tile: codes [B, L, WIDTH], scales [B, ceil(L/TILE), ceil(WIDTH/TILE)]. Nothing fuses but what is written out,
    so that values round as in `_layer_norm_modulate_kernel` and codes as in the quantizer."""
    i_scale = tl.program_id(0)
    n_l, n_w = tl.cdiv(L, TILE), tl.cdiv(WIDTH, TILE)
    i_b = (i_scale // (n_l * n_w)).to(tl.int64)
    i_l = (i_scale // n_w % n_l).to(tl.int64) * TILE
    o_l, o_w = tl.arange(0, TILE), i_scale % n_w * TILE + tl.arange(0, TILE)
    m_l, m_w = o_l < L - i_l, o_w < WIDTH
    m_x = m_l[:, None] & m_w[None, :]
    b_x = tl.load(p_x + i_b * x_b + (i_l + o_l)[:, None] * x_l + o_w[None, :], mask=m_x, other=0.0).to(tl.float32)
    p_statistics += (i_b * L + i_l + o_l) * 2
    b_mean = tl.load(p_statistics, mask=m_l, other=0.0)
    b_rstd = tl.load(p_statistics + 1, mask=m_l, other=0.0)
    if ONE_FRAME:
        b_shift = tl.load(p_shift + i_b * shift_b + o_w, mask=m_w, other=0.0).to(tl.float32)[None, :]
        b_scale = tl.load(p_scale + i_b * scale_b + o_w, mask=m_w, other=0.0).to(tl.float32)[None, :]
    else:
        i_f = ((i_l + o_l) // FRAME)[:, None]
        b_shift = tl.load(p_shift + i_b * shift_b + i_f * shift_f + o_w[None, :], mask=m_x, other=0.0).to(tl.float32)
        b_scale = tl.load(p_scale + i_b * scale_b + i_f * scale_f + o_w[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_shift, b_scale = tl.broadcast_to(b_shift, [TILE, TILE]), tl.broadcast_to(1 + b_scale, [TILE, TILE])
    b_y = tl.fma((b_x - b_mean[:, None]) * b_rstd[:, None], b_scale, b_shift)
    b_y = tl.where(m_x, b_y.to(p_x.dtype.element_ty).to(tl.float32), 0.0)
    amax = find_amax(b_y, MIN_AMAX)
    tl.store(p_scales + i_scale, amax * (1 / 128))
    tl.store(p_codes + (i_b * L + i_l + o_l)[:, None] * WIDTH + o_w[None, :], encode(b_y, amax, 128), mask=m_x)


def launch_config(width: int) -> dict[str, int]:
    """Launch config of the kernels that hold a row: in two parts, powers of 2, of which the first is whole. Wan's
    widths, 1536 and 5120, are whole sums of two; one part of 8192 would compute 3072 channels that are not there."""
    first = 1 << max(0, (width - 1).bit_length() - 1)
    return dict(FIRST=first, REST=triton.next_power_of_2(max(1, width - first)), num_warps=4)


def _launch(
    x: torch.Tensor,
    shift: torch.Tensor,
    scale: torch.Tensor,
    out: torch.Tensor,
    y_scales: torch.Tensor | None,
    by: str | None,
    eps: float,
) -> None:
    b, length, width = x.shape
    launch(
        _layer_norm_modulate_kernel, (length, b),
        x, shift, scale, out, y_scales, eps, length, triton.cdiv(length, shift.shape[1]),
        *x.stride()[:2], *shift.stride()[:2], *scale.stride()[:2],
        WIDTH=width, BY=by, MIN_AMAX=MIN_AMAX, TILE=TILE,
        enable_fp_fusion=by != "group",  # its codes are those of the quantizer, where nothing fuses
        **launch_config(width),
    )  # fmt: skip


def layer_norm_modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift of x [B, L, width], in x's dtype; see `custom_ops`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(x, shift, scale, out, None, None, eps)
    return out


def _quantize_block(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    b, length, width = x.shape
    codes, scales = empty_codes(x.shape, "block", x.device)
    statistics = torch.empty((b, length, 2), dtype=torch.float32, device=x.device)
    launch(
        _statistics_kernel, (length, b),
        x, statistics, eps, length, *x.stride()[:2],
        WIDTH=width, enable_fp_fusion=True, **launch_config(width),
    )  # fmt: skip
    launch(
        _modulate_quantize_block_kernel, (scales.numel(),),
        x, statistics, shift, scale, codes, scales, length, triton.cdiv(length, shift.shape[1]), width,
        *x.stride()[:2], *shift.stride()[:2], *scale.stride()[:2],
        ONE_FRAME=shift.shape[1] == 1, MIN_AMAX=MIN_AMAX, TILE=TILE,
        num_warps=8 if shift.shape[1] == 1 else 16, enable_fp_fusion=False,  # fewer warps spill
    )  # fmt: skip
    return codes, scales


def layer_norm_modulate_quantize(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float, by: str = "row"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`layer_norm_modulate` as int8 codes [B, L, width] and float32 scales, by "row", "group" or "block"; see
    `custom_ops`."""
    if by == "block":
        return _quantize_block(x, shift, scale, eps)
    codes, scales = empty_codes(x.shape, by, x.device)
    _launch(x, shift, scale, codes, scales, by, eps)
    return codes, scales

"""The entries of normalizations with what follows them: rotary embedding, modulation and quantization in a Wan block,
SiLU and the padding of the next convolution in a Wan VAE.

Triton comes before comfy_kitchen: it reads strided views and a modulation for each frame as they are, and takes the
variance about the mean."""

import torch

from ..dispatch import Operator, unsupported_dtype
from ..int8.format import check_kind, empty_codes
from .format import MEMORY_FORMATS, PAST, empty_frames

RMS_NORM_ROPE = Operator("rms_norm_rope", "norm", "norm and rope")
LAYER_NORM_MODULATE = Operator("layer_norm_modulate", "norm", "norm and modulation")
LAYER_NORM_MODULATE_QUANTIZE = Operator(
    "layer_norm_modulate_quantize",
    "norm",
    "norm, modulation and quantization",
    never={"comfy_kitchen": "its adaln does not quantize"},
)

RMS_NORM_SILU_PAD = Operator("rms_norm_silu_pad", "norm", "norm and SiLU of the VAE", self_test="rms_norm_silu_pad")


def _unsupported(x: torch.Tensor) -> dict[str, str]:
    """By backend, the reason why it cannot take an activation [B, L, width]."""
    reason = unsupported_dtype(x.dtype, x.device)
    if reason is not None:
        return {"triton": reason, "comfy_kitchen": reason}
    if x.stride(-1) != 1:
        return {"triton": "its kernels need a contiguous last dimension"}
    return {}


@torch.library.custom_op("turbodiffusion::rms_norm_rope", mutates_args=())
def rms_norm_rope(
    x: torch.Tensor, weight: torch.Tensor, freqs: torch.Tensor, heads: int, eps: float = 1e-6
) -> torch.Tensor:
    """Rotary embedding of x / rms(x) * weight, where rms spans all heads: x [B, L, H * D], weight [H * D] and float32
    freqs [1, L, 1, D/2, 2, 2] as ComfyUI's `rope_encode` makes them -> [B, L, H, D] in x's dtype.

    The normalized values are rounded to x's dtype before they are rotated, as the separate operators do. Raises
    ValueError for shapes that do not fit together."""
    d = x.shape[-1] // max(heads, 1)
    if (
        x.ndim != 3
        or heads < 1
        or heads * d != x.shape[-1]
        or weight.shape != x.shape[-1:]
        or freqs.shape != (1, x.shape[1], 1, d // 2, 2, 2)
        or freqs.dtype != torch.float32
    ):
        raise ValueError(
            f"x [B, L, H * D], weight [H * D] and float32 freqs [1, L, 1, D/2, 2, 2] are needed: {list(x.shape)} in "
            f"{heads} heads, {list(weight.shape)}, {freqs.dtype} {list(freqs.shape)}."
        )
    if x.numel() == 0:
        return x.new_empty((*x.shape[:2], heads, d))
    unsupported = _unsupported(x)
    if d & (d - 1):
        unsupported["triton"] = f"its kernel needs a head_dim that is a power of two, not {d}"
    return RMS_NORM_ROPE.find(x.device, unsupported)(x, weight, freqs, heads=heads, eps=eps)


@rms_norm_rope.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, freqs: torch.Tensor, heads: int, eps: float = 1e-6) -> torch.Tensor:
    return x.new_empty((*x.shape[:2], heads, x.shape[2] // heads))


def _check_modulation(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> None:
    if (
        x.ndim != 3
        or shift.ndim != 3
        or shift.shape != scale.shape
        or (shift.shape[0], shift.shape[2]) != (x.shape[0], x.shape[2])
        or not 0 < shift.shape[1] <= max(x.shape[1], 1)
        or shift.stride(-1) != 1
        or scale.stride(-1) != 1
    ):
        raise ValueError(
            f"x [B, L, width], shift and scale [B, frames, width] with a contiguous width are needed: "
            f"{[list(t.shape) for t in (x, shift, scale)]}."
        )


@torch.library.custom_op("turbodiffusion::layer_norm_modulate", mutates_args=())
def layer_norm_modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift in float32, rounded once to x's dtype: [B, L, width].

    shift and scale are [B, frames, width], each for ceil(L / frames) tokens in a row. Raises ValueError for shapes that
    do not fit together."""
    _check_modulation(x, shift, scale)
    if x.numel() == 0:
        return x.new_empty(x.shape)
    unsupported = _unsupported(x)
    if shift.shape[1] > 1:
        unsupported.setdefault("comfy_kitchen", "its adaln has one modulation for all tokens of an item")
    return LAYER_NORM_MODULATE.find(x.device, unsupported)(x, shift, scale, eps=eps)


@layer_norm_modulate.register_fake
def _(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("turbodiffusion::layer_norm_modulate_quantize", mutates_args=())
def layer_norm_modulate_quantize(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float = 1e-6, by: str = "block"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`layer_norm_modulate` as int8 codes and scales for the int8 linears that follow: by "block" and "group" those of
    its rounded values, as if it were quantized afterwards; by "row" those of its values in float32. Raises ValueError
    for shapes that do not fit together and another `by`."""
    _check_modulation(x, shift, scale)
    check_kind(by)
    if x.numel() == 0:
        return empty_codes(x.shape, by, x.device)
    return LAYER_NORM_MODULATE_QUANTIZE.find(x.device, _unsupported(x))(x, shift, scale, eps=eps, by=by)


@layer_norm_modulate_quantize.register_fake
def _(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float = 1e-6, by: str = "block"
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_codes(x.shape, by, x.device)


@torch.library.custom_op("turbodiffusion::rms_norm_silu_pad", mutates_args=("past",))
def rms_norm_silu_pad(x: torch.Tensor, weight: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
    """The input of a causal convolution over three frames: y = SiLU(x / rms(x) * weight), where rms spans the channels
    of a pixel, behind the two frames before it.

    x [B, C, T, H, W], contiguous or channels last; weight [C], float; `past` [B, C, 2, H, W], the last two frames of y
    so far, which become those after this call. Returns [B, C, 2 + T, H, W] in x's dtype and memory format, and without
    `past` y alone, [B, C, T, H, W]. Raises ValueError for shapes that do not fit together. Source: RMS_norm, SiLU and
    CausalConv3d of ComfyUI's comfy/ldm/wan/vae.py."""
    if (
        x.ndim != 5
        or weight.shape != x.shape[1:2]
        or (past is not None and (past.shape != (*x.shape[:2], PAST, *x.shape[3:]) or past.dtype != x.dtype))
        or (past is not None and not any(past.is_contiguous(memory_format=form) for form in MEMORY_FORMATS))
    ):
        raise ValueError(
            f"x [B, C, T, H, W], weight [C] and past [B, C, {PAST}, H, W] of x's dtype, dense, are needed: "
            f"{list(x.shape)}, {list(weight.shape)}, {None if past is None else [past.dtype, *past.shape]}."
        )
    reason = unsupported_dtype(x.dtype, x.device)
    return RMS_NORM_SILU_PAD.find(x.device, {} if reason is None else {"triton": reason})(x, weight, past)


@rms_norm_silu_pad.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
    return empty_frames(x, x.shape[2] + (0 if past is None else PAST))

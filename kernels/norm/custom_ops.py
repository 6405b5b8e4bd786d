"""The entries of a Wan block's normalizations with what follows them: rotary embedding, modulation, quantization.

Triton comes before comfy_kitchen: it reads strided views and a modulation for each frame as they are, and takes the
variance about the mean."""

import torch

from ..dispatch import Operator, unfit_dtype
from ..int8.format import check_kind, empty_codes

RMS_NORM_ROPE = Operator("rms_norm_rope", "norm", "norm and rope")
LAYER_NORM_MODULATE = Operator("layer_norm_modulate", "norm", "norm and modulation")
LAYER_NORM_MODULATE_QUANTIZE = Operator(
    "layer_norm_modulate_quantize",
    "norm",
    "norm, modulation and quantization",
    never={"comfy_kitchen": "its adaln does not quantize"},
)


def _unfit(x: torch.Tensor) -> dict[str, str]:
    """Why the kernels cannot take an activation [B, L, width]."""
    reason = unfit_dtype(x.dtype, x.device)
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
    unfit = _unfit(x)
    if d & (d - 1):
        unfit["triton"] = f"its kernel needs a head_dim that is a power of two, not {d}"
    return RMS_NORM_ROPE.find(x.device, unfit)(x, weight, freqs, heads=heads, eps=eps)


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
    unfit = _unfit(x)
    if shift.shape[1] > 1:
        unfit.setdefault("comfy_kitchen", "its adaln has one modulation for all tokens of an item")
    return LAYER_NORM_MODULATE.find(x.device, unfit)(x, shift, scale, eps=eps)


@layer_norm_modulate.register_fake
def _(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("turbodiffusion::layer_norm_modulate_quantize", mutates_args=())
def layer_norm_modulate_quantize(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float = 1e-6, by: str = "block"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`layer_norm_modulate` as int8 codes and scales for the int8 linears that follow: by "block" and "group" those of
    its rounded values, as if it were quantized afterwards; by "row" those of its values in float32."""
    _check_modulation(x, shift, scale)
    check_kind(by)
    if x.numel() == 0:
        return empty_codes(x.shape, by, x.device)
    return LAYER_NORM_MODULATE_QUANTIZE.find(x.device, _unfit(x))(x, shift, scale, eps=eps, by=by)


@layer_norm_modulate_quantize.register_fake
def _(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float = 1e-6, by: str = "block"
) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_codes(x.shape, by, x.device)

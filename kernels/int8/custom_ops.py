"""The entries of int8 linear layers: the quantization of an activation, the product, and the product fused with the
GELU of a feed-forward or with a gated residual.

A weight is int8 [N, K] in the block-scaled format (`format`), or with a scale for each channel [N]. An activation is
quantized by "block" (as upstream), by "group" (finer) or, for a weight by channel, by "row"; the shape of its scales
tells which."""

import torch

from ..call_counter import count
from ..dispatch import Operator, unsupported_dtype
from .format import KINDS, check_kind, empty_codes, scale_kind, tile_count

_NEVER = {
    "comfy_kitchen": "its int8_linear has one scale for each row of the weight, and these have one for each 128x128 "
    "tile"
}
QUANTIZE = {by: Operator(f"quantize_{by}", "int8") for by in KINDS}
LINEAR = Operator("int8_linear", "int8", "int8 linear", never=_NEVER)
MATMUL = Operator("int8_matmul", "int8", never=_NEVER)
GELU_QUANTIZE = Operator("int8_matmul_gelu_quantize", "int8", never=_NEVER)
GATE_RESIDUAL = Operator("int8_matmul_gate_residual", "int8", never=_NEVER)


def _unsupported(dtype: torch.dtype, device: torch.device, weight: torch.Tensor | None = None) -> dict[str, str]:
    """By backend, the reason why it cannot compute in `dtype` with this weight."""
    reason = unsupported_dtype(dtype, device)
    if reason is not None:
        return {"triton": reason, "dequantized": reason.replace("its kernels compute", "it computes")}
    if weight is not None and not weight.is_contiguous():
        return {"triton": "its kernels need a contiguous weight"}
    return {}


@torch.compiler.assume_constant_result
def multiplies_codes(device: torch.device) -> bool:
    """Whether int8 linears on a device multiply int8 codes, so that quantizing before them is useful."""
    return LINEAR.choose(device).backend != "dequantized"


def _check_weight(x: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
    if (
        x.ndim < 2
        or weight.ndim != 2
        or x.shape[-1] != weight.shape[1]
        or weight.dtype != torch.int8
        or weight_scale.shape not in (tuple(tile_count(size) for size in weight.shape), weight.shape[:1])
    ):
        raise ValueError(
            f"x [..., M, K] and an int8 weight [N, K] with scales [N/128, K/128] or [N] are needed: {list(x.shape)}, "
            f"{weight.dtype} {list(weight.shape)}, {list(weight_scale.shape)}."
        )


def _check_by(weight_scale: torch.Tensor, by: str) -> None:
    check_kind(by)
    if weight_scale.ndim == 1 and by != "row":
        raise ValueError(f"A weight with a scale for each channel needs an activation by row, not by {by}.")


def _check_codes(codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor) -> None:
    _check_weight(codes, weight, weight_scale)
    _check_by(weight_scale, scale_kind(codes, scales))
    if codes.dtype != torch.int8:
        raise ValueError(f"int8 codes are needed: {codes.dtype}.")


@torch.library.custom_op("turbodiffusion::int8_quantize", mutates_args=())
def int8_quantize(x: torch.Tensor, by: str = "block") -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of x [..., M, K] and float32 scales, by "block" (codes -128..127, scale amax/128), "group" or "row"
    (-127..127, amax/127). Raises ValueError for another `by`, and for x with fewer than two dimensions."""
    check_kind(by)
    if x.ndim < 2:
        raise ValueError(f"x [..., M, K] is needed: {list(x.shape)}.")
    if x.numel() == 0:
        return empty_codes(x.shape, by, x.device)
    return QUANTIZE[by].find(x.device, _unsupported(x.dtype, x.device))(x)


@int8_quantize.register_fake
def _(x: torch.Tensor, by: str = "block") -> tuple[torch.Tensor, torch.Tensor]:
    return empty_codes(x.shape, by, x.device)


@torch.library.custom_op("turbodiffusion::int8_linear", mutates_args=())
def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "block",
) -> torch.Tensor:
    """x [..., M, K], quantized by "block", "group" or "row" (`activation`), times an int8 weight [N, K], plus a bias
    [N]. Returns [..., M, N] in x's dtype.

    Where an int8 product would be slower, x is not quantized, the product is computed in x's dtype, and the call is not
    counted as an int8 linear. Raises ValueError for shapes or dtypes that do not fit together."""
    _check_weight(x, weight, weight_scale)
    _check_by(weight_scale, activation)
    backend = LINEAR.choose(x.device, _unsupported(x.dtype, x.device, weight)).backend
    if backend != "dequantized":
        count("int8 linear")
    if x.numel() == 0:
        return x.new_zeros((*x.shape[:-1], weight.shape[0]))
    return LINEAR.load(backend)(x, weight, weight_scale, bias, activation=activation)


@int8_linear.register_fake
def _(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "block",
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.custom_op("turbodiffusion::int8_matmul", mutates_args=())
def int8_matmul(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """A quantized activation, int8 codes [..., M, K] with float32 scales, times an int8 weight [N, K], plus a bias [N]:
    [..., M, N] in `out_dtype`. Raises ValueError for shapes or dtypes that do not fit together."""
    _check_codes(codes, scales, weight, weight_scale)
    count("int8 linear")
    if codes.numel() == 0:
        return codes.new_zeros((*codes.shape[:-1], weight.shape[0]), dtype=out_dtype)
    run = MATMUL.find(codes.device, _unsupported(out_dtype, codes.device, weight))
    return run(codes, scales, weight, weight_scale, bias, out_dtype=out_dtype)


@int8_matmul.register_fake
def _(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    return codes.new_empty((*codes.shape[:-1], weight.shape[0]), dtype=out_dtype)


@torch.library.custom_op("turbodiffusion::int8_matmul_gelu_quantize", mutates_args=())
def int8_matmul_gelu_quantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    by: str = "block",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tanh GELU of `int8_matmul`, quantized by "block", "group" or "row" for the layer that follows: codes
    [..., M, N] and their scales. Product and GELU are rounded to `out_dtype`, as separate operators would do. Raises
    ValueError as `int8_matmul`, and for another `by`."""
    _check_codes(codes, scales, weight, weight_scale)
    check_kind(by)
    count("int8 linear")
    if codes.numel() == 0:
        return _empty_output(codes, weight, by)
    run = GELU_QUANTIZE.find(codes.device, _unsupported(out_dtype, codes.device, weight))
    return run(codes, scales, weight, weight_scale, bias, out_dtype=out_dtype, by=by)


def _empty_output(codes: torch.Tensor, weight: torch.Tensor, by: str) -> tuple[torch.Tensor, torch.Tensor]:
    return empty_codes((*codes.shape[:-1], weight.shape[0]), by, codes.device)


@int8_matmul_gelu_quantize.register_fake
def _(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    by: str = "block",
) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_output(codes, weight, by)


@torch.library.custom_op("turbodiffusion::int8_matmul_gate_residual", mutates_args=())
def int8_matmul_gate_residual(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor,
) -> torch.Tensor:
    """residual [B, M, N] + gate [B, 1, N] * `int8_matmul` of codes [B, M, K], in the residual's dtype. Raises
    ValueError as `int8_matmul`, and for other shapes of residual and gate."""
    _check_codes(codes, scales, weight, weight_scale)
    b, n = residual.shape[0], weight.shape[0]
    if residual.shape != (*codes.shape[:-1], n) or residual.ndim != 3 or gate.shape != (b, 1, n):
        raise ValueError(
            f"A residual [B, M, N] and a gate [B, 1, N] are needed: {list(residual.shape)}, {list(gate.shape)} for a "
            f"product [{', '.join(map(str, codes.shape[:-1]))}, {n}]."
        )
    count("int8 linear")
    if codes.numel() == 0:
        return residual.clone()
    run = GATE_RESIDUAL.find(codes.device, _unsupported(residual.dtype, codes.device, weight))
    return run(codes, scales, weight, weight_scale, bias, residual=residual, gate=gate)


@int8_matmul_gate_residual.register_fake
def _(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    gate: torch.Tensor,
) -> torch.Tensor:
    return residual.new_empty(residual.shape)

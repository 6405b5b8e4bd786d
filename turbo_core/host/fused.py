"""A block's linears fused with the operators before and after them, where every layer concerned is int8 and unchanged.

Otherwise each function runs ComfyUI's own calls on float activations. Both compute the same arithmetic in the same
order except for two roundings, which a float32 model does not have: the fused path rounds layer norm and modulation
once, together (ComfyUI and upstream round the norm first), and adds gate and residual to the rounded product by one
fused multiply-add, as `addcmul` does. Codes and scales are those that a separate quantizer computes from the same
rounded values."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from comfy.ldm.wan.model import WanT2VCrossAttention, repeat_e

from ...kernels import (
    int8_matmul_gate_residual,
    int8_matmul_gelu_quantize,
    layer_norm_modulate,
    layer_norm_modulate_quantize,
    rms_norm_rope,
)
from .features import dense_attention, fetched
from .quant import Quantized, is_replaced, takes_codes
from .side_paths import side_paths, values_of


def own_forward(cls: type[torch.nn.Module]) -> Callable[..., torch.Tensor] | None:
    """The forward of a class, None if it is not from the file that defines the class: other packs replace it, some
    before this pack is imported."""
    code = getattr(cls.forward, "__code__", None)
    return cls.forward if code is not None and code.co_filename == inspect.getfile(cls) else None


_CROSS_ATTENTION = own_forward(WanT2VCrossAttention)  # another pack may replace the method later


def norm_modulate(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float, *readers: Any
) -> torch.Tensor | Quantized:
    """LayerNorm(x) * (1 + scale) + shift of x [B, L, dim], with shift and scale [B, frames, dim]; quantized once for
    all `readers` if each takes codes. Without readers it stays float."""
    quantized = len(readers) > 0 and takes_codes(x.device, *readers)
    if quantized and not any([side_paths(reader) for reader in readers]):
        codes, scales = layer_norm_modulate_quantize(x, shift, scale, eps, readers[0].activation)
        return Quantized(codes, scales, x.dtype)
    y = layer_norm_modulate(x, shift, scale, eps)
    return readers[0].quantize(y) if quantized else y


def norm_rope(norm: torch.nn.RMSNorm, x: torch.Tensor, freqs: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary embedding of norm(x), x [B, L, H * D] -> [B, L, H, D]."""
    with fetched(norm, x) as (weight, _):
        return rms_norm_rope(x, weight, freqs, heads, norm.eps)


def linear_gelu(linear: Any, x: torch.Tensor | Quantized, reader: Any) -> torch.Tensor | Quantized:
    """gelu(linear(x)), quantized for `reader` if it takes codes and neither has a side path: one of `linear` is added
    before the GELU, and one of `reader` reads its result in float. `linear` takes codes if x is Quantized."""
    in_float = len(side_paths(linear)) + len(side_paths(reader)) > 0
    if isinstance(x, Quantized) and not in_float and takes_codes(x.codes.device, reader):
        codes, scales = linear.multiply(int8_matmul_gelu_quantize, x, out_dtype=x.dtype, by=reader.activation)
        return Quantized(codes, scales, x.dtype)
    return F.gelu(linear(x), approximate="tanh")


def add_cross_attention(
    x: torch.Tensor,
    norm: Any,
    attention: Any,
    context: torch.Tensor,
    image_tokens: int | None,
    transformer_options: dict[str, Any],
) -> torch.Tensor:
    """x + attention(norm(x), context): x [B, L, dim], context [B, tokens, dim]; `norm` is a LayerNorm, or nothing."""
    options = {"transformer_options": transformer_options}
    is_norm = isinstance(norm, torch.nn.LayerNorm) and norm.elementwise_affine and not is_replaced(norm)
    is_stock = type(attention) is WanT2VCrossAttention and type(attention).forward is _CROSS_ATTENTION
    known = is_norm and is_stock and not is_replaced(attention)
    if not known or not takes_codes(x.device, attention.q, attention.o):
        return x + attention(norm(x), context, context_img_len=image_tokens, **options)
    with fetched(norm, x) as (weight, bias):
        shift, scale = (each[None, None].float() for each in (bias, weight))
        y = norm_modulate(x, shift.expand(len(x), -1, -1), (scale - 1).expand(len(x), -1, -1), norm.eps, attention.q)
    q = attention.norm_q(attention.q(y))
    k, v = attention.norm_k(attention.k(context)), attention.v(context)
    out = dense_attention(attention, q, k, v, transformer_options)
    return add_gated_linear(x, attention.o, out, x.new_ones(len(x), 1, x.shape[2]))


def add_gated_linear(
    residual: torch.Tensor, linear: Any, x: torch.Tensor | Quantized, gate: torch.Tensor
) -> torch.Tensor:
    """residual + gate * linear(x): residual [B, L, dim], gate [B, frames, dim]."""
    if gate.shape[1] == 1 and takes_codes(residual.device, linear):
        if not isinstance(x, Quantized):
            x = linear.quantize(x)
        for path in side_paths(linear):
            residual = add_gated(residual, path.product(values_of(x)), gate)
        return linear.multiply(int8_matmul_gate_residual, x, residual=residual, gate=gate)
    return add_gated(residual, linear(x), gate)


def add_gated(residual: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """residual + gate * y: both [B, L, dim], gate [B, frames, dim]."""
    return torch.addcmul(residual, y, repeat_e(gate, residual).to(residual.dtype))

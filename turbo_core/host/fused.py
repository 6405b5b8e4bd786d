"""A block's linears with what stands before and after them, fused where every layer concerned is int8 and untouched.

Each function gives a plain result otherwise: float activations, ComfyUI's own calls. Fused or not it is the same arithmetic in
the same order but for these roundings, which a float32 model does not have: layer norm and modulation are rounded once, together
(ComfyUI rounds the norm first, and so does upstream), and gate and residual are added to the rounded product by one fused
multiply-add, as `addcmul` does. Codes and scales are those that a separate quantiser makes of the same rounded values."""

import torch
import torch.nn.functional as F
from comfy.ldm.wan.model import repeat_e

from ...kernels import (
    int8_matmul_gate_residual,
    int8_matmul_gelu_quantize,
    int8_quantize,
    layer_norm_modulate,
    layer_norm_modulate_quantize,
    rms_norm_rope,
)
from .features import fetched
from .quant import Quantized, takes_codes


def norm_modulate(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float, *readers: torch.nn.Module
) -> torch.Tensor | Quantized:
    """LayerNorm(x) * (1 + scale) + shift of x [B, L, dim], with shift and scale [B, frames, dim]; quantised once for all
    `readers` if each takes codes. Without readers it stays float."""
    if readers and takes_codes(x.device, *readers):
        return Quantized(*layer_norm_modulate_quantize(x, shift, scale, eps), x.dtype)
    return layer_norm_modulate(x, shift, scale, eps)


def norm_rope(norm: torch.nn.RMSNorm, x: torch.Tensor, freqs: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary embedding of norm(x), x [B, L, H * D] -> [B, L, H, D]."""
    with fetched(norm, x) as (weight, _):
        return rms_norm_rope(x, weight, freqs, heads, norm.eps)


def linear_gelu(
    linear: torch.nn.Module, x: torch.Tensor | Quantized, reader: torch.nn.Module
) -> torch.Tensor | Quantized:
    """gelu(linear(x)), quantised for `reader` if it takes codes."""
    if isinstance(x, Quantized) and takes_codes(x.codes.device, reader):
        return Quantized(*linear.multiply(int8_matmul_gelu_quantize, x, out_dtype=x.dtype), x.dtype)
    return F.gelu(linear(x), approximate="tanh")


def add_gated_linear(
    residual: torch.Tensor, linear: torch.nn.Module, x: torch.Tensor | Quantized, gate: torch.Tensor
) -> torch.Tensor:
    """residual + gate * linear(x): residual [B, L, dim], gate [B, frames, dim]."""
    if gate.shape[1] == 1 and takes_codes(residual.device, linear):
        codes = x if isinstance(x, Quantized) else Quantized(*int8_quantize(x), x.dtype)
        return linear.multiply(int8_matmul_gate_residual, codes, residual=residual, gate=gate)
    return add_gated(residual, linear(x), gate)


def add_gated(residual: torch.Tensor, y: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """residual + gate * y: both [B, L, dim], gate [B, frames, dim]."""
    return torch.addcmul(residual, y, repeat_e(gate, residual).to(residual.dtype))

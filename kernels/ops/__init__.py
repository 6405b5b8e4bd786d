"""The operators, registered as `torch.ops.turbodiffusion.*` so that torch.compile takes each as one opaque node.

Each entry validates once, asks `backends` who runs it, and calls that. Sequences are [B, L, H, D] in attention, [B, L, width]
elsewhere."""

from collections.abc import Mapping
from types import MappingProxyType

from ..backends import Operator
from . import attention, int8, norm
from .attention import block_map, block_sparse_attention, sparse_linear_attention
from .int8 import (
    int8_linear,
    int8_matmul,
    int8_matmul_gate_residual,
    int8_matmul_gelu_quantize,
    int8_quantize,
    multiplies_codes,
)
from .nf4 import NF4, nf4_dequantize
from .norm import layer_norm_modulate, layer_norm_modulate_quantize, rms_norm_rope

# What a status report asks about, in its words.
OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "sparse attention": attention.SPARSE_LINEAR,
        "8-bit sparse attention": attention.SAGE_SPARSE_LINEAR,
        "int8 linear": int8.LINEAR,
        "NF4 weights": NF4,
        "norm and rope": norm.RMS_NORM_ROPE,
        "norm and modulation": norm.LAYER_NORM_MODULATE,
        "norm, modulation and quantisation": norm.LAYER_NORM_MODULATE_QUANTIZE,
    }
)

__all__ = [
    "OPERATORS",
    "block_map",
    "block_sparse_attention",
    "int8_linear",
    "int8_matmul",
    "int8_matmul_gate_residual",
    "int8_matmul_gelu_quantize",
    "int8_quantize",
    "layer_norm_modulate",
    "layer_norm_modulate_quantize",
    "multiplies_codes",
    "nf4_dequantize",
    "rms_norm_rope",
    "sparse_linear_attention",
]

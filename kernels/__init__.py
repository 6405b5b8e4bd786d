"""Operators of TurboDiffusion on tensors, one folder each: `custom_ops` is the entry, `reference` says in plain torch what it
computes, and each other module is a backend. `backends` decides which one runs."""

from collections.abc import Mapping
from types import MappingProxyType

from .attention import custom_ops as _attention
from .attention.custom_ops import block_map, block_sparse_attention, sparse_linear_attention
from .backends import Choice, NoBackendError, Operator, eight_bit_format, use_backend
from .call_counter import counting
from .int8 import custom_ops as _int8
from .int8.custom_ops import (
    int8_linear,
    int8_matmul,
    int8_matmul_gate_residual,
    int8_matmul_gelu_quantize,
    int8_quantize,
    multiplies_codes,
)
from .int8.reference import dequantize_block, quantize_block, tile_count
from .nf4.custom_ops import NF4, nf4_dequantize
from .norm import custom_ops as _norm
from .norm.custom_ops import layer_norm_modulate, layer_norm_modulate_quantize, rms_norm_rope

# What a status report asks about, in its words.
OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {
        "sparse attention": _attention.SPARSE_LINEAR,
        "8-bit sparse attention": _attention.SAGE_SPARSE_LINEAR,
        "int8 linear": _int8.LINEAR,
        "NF4 weights": NF4,
        "norm and rope": _norm.RMS_NORM_ROPE,
        "norm and modulation": _norm.LAYER_NORM_MODULATE,
        "norm, modulation and quantisation": _norm.LAYER_NORM_MODULATE_QUANTIZE,
    }
)

__all__ = [
    "OPERATORS",
    "Choice",
    "NoBackendError",
    "Operator",
    "block_map",
    "block_sparse_attention",
    "counting",
    "dequantize_block",
    "eight_bit_format",
    "int8_linear",
    "int8_matmul",
    "int8_matmul_gate_residual",
    "int8_matmul_gelu_quantize",
    "int8_quantize",
    "layer_norm_modulate",
    "layer_norm_modulate_quantize",
    "multiplies_codes",
    "nf4_dequantize",
    "quantize_block",
    "rms_norm_rope",
    "sparse_linear_attention",
    "tile_count",
    "use_backend",
]

"""Operators of TurboDiffusion on tensors: `ops` are the entries, `reference/` says in plain torch what each computes, `triton/`
is how it runs on a GPU, `kitchen/` how comfy_kitchen does, `backends` decides between them."""

from .backends import Choice, NoBackendError, Operator, eight_bit_format, use_backend
from .ops import (
    OPERATORS,
    block_map,
    block_sparse_attention,
    int8_linear,
    int8_matmul,
    int8_matmul_gate_residual,
    int8_matmul_gelu_quantize,
    int8_quantize,
    layer_norm_modulate,
    layer_norm_modulate_quantize,
    multiplies_codes,
    nf4_dequantize,
    rms_norm_rope,
    sparse_linear_attention,
)
from .reference.int8 import dequantize_block, quantize_block, tile_count
from .tally import counting

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

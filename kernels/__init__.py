"""Operators of TurboDiffusion on tensors: `ops` are the entries, `reference/` says in plain torch what each computes, `triton/`
is how it runs on a GPU, `backends` decides between them."""

from .backends import Choice, NoBackendError, eight_bit_format, use_backend
from .nf4 import nf4_dequantize
from .ops import block_map, int8_linear, sparse_linear_attention
from .reference.int8 import dequantize_block, quantize_block, tile_count
from .tally import counting

__all__ = [
    "Choice",
    "NoBackendError",
    "block_map",
    "counting",
    "dequantize_block",
    "eight_bit_format",
    "int8_linear",
    "nf4_dequantize",
    "quantize_block",
    "sparse_linear_attention",
    "tile_count",
    "use_backend",
]

"""Operators of TurboDiffusion on tensors, one folder for each kind: `custom_ops` is the entry, `reference` defines the
result in plain torch, `self_test_cases` has the calls on which a backend is compared with it. `backends` is the table
of backends, modules of each folder; `dispatch` chooses one."""

from collections.abc import Mapping
from types import MappingProxyType

from .ahead import BY_FUNCTION, Call, attention_call, compile_ahead
from .attention.custom_ops import automatic_format, check_sparse_attention, sparse_linear_attention
from .attention.pv_format import AUTOMATIC, sage_pv_format, sage_v_bytes
from .backends import Fixable
from .background import BackgroundCompiler, background_compiler
from .call_counter import counting
from .dispatch import Choice, NoBackendError, Operator, use_backend
from .int8.custom_ops import (
    int8_linear,
    int8_matmul,
    int8_matmul_gate_residual,
    int8_matmul_gelu_quantize,
    int8_quantize,
    multiplies_codes,
)
from .int8.format import TILE, tile_count
from .int8.reference import dequantize_block, quantize_block, quantize_row
from .int8.suited import suited_weights
from .nf4.custom_ops import nf4_dequantize
from .norm.custom_ops import layer_norm_modulate, layer_norm_modulate_quantize, rms_norm_rope, rms_norm_silu_pad

# The operators of the status report, by title.
OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {operator.title: operator for operator in BY_FUNCTION.values() if operator.title}
)

__all__ = [
    "AUTOMATIC",
    "BackgroundCompiler",
    "OPERATORS",
    "TILE",
    "Call",
    "Choice",
    "Fixable",
    "NoBackendError",
    "Operator",
    "attention_call",
    "automatic_format",
    "background_compiler",
    "check_sparse_attention",
    "compile_ahead",
    "counting",
    "dequantize_block",
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
    "quantize_row",
    "rms_norm_rope",
    "rms_norm_silu_pad",
    "sage_pv_format",
    "sage_v_bytes",
    "sparse_linear_attention",
    "suited_weights",
    "tile_count",
    "use_backend",
]

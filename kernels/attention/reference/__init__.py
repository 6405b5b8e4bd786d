"""Sparse-linear attention in plain torch: `sla` in the dtype of its inputs, `sage` in 8 bits."""

from .sage import sage_sparse_linear_attention
from .sla import block_map, sparse_linear_attention

__all__ = ["block_map", "sage_sparse_linear_attention", "sparse_linear_attention"]

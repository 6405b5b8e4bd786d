"""Sparse-linear attention in Triton. Imported only when a GPU tensor needs it."""

from .block_selection import block_map
from .sage import sage_sparse_linear_attention
from .sla import sparse_linear_attention

__all__ = ["block_map", "sage_sparse_linear_attention", "sparse_linear_attention"]

"""Sparse-linear attention in a few large torch operations, for devices without a kernel."""

from .sla import block_map, sparse_linear_attention

__all__ = ["block_map", "sparse_linear_attention"]

"""Operators of TurboDiffusion: what they compute is in `reference/`, in plain torch."""

from .reference.sla import block_map, block_sparse_attention, linear_attention

__all__ = ["block_map", "block_sparse_attention", "linear_attention"]

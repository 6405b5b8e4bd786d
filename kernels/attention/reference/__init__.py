"""Sparse-linear attention in plain torch."""

"""Sparse-linear attention in Triton. Imported only when a GPU tensor needs it."""

"""Sparse-linear attention (SLA) in 16 bits, and in 8 bits as SageAttention 2 quantizes it."""

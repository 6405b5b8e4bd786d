"""Sparse-linear attention (SLA), in 16 bits and as sage attention, which computes the scores in int8 (SageAttention
2)."""

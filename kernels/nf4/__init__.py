"""Dequantizing 4-bit weights (NF4) of bitsandbytes."""

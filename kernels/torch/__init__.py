"""Operators in plain torch made for speed, where the definition in `reference/` would be too slow."""

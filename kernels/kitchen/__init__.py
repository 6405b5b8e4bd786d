"""Operators that comfy_kitchen has compiled, in the signature of `reference/`. Imported only where it is installed."""

"""Matrices of the formats that tensor cores multiply: codes for the emulator's tests, and their values by torch and
numpy."""

import numpy as np
import torch

BITS = {"s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8, "f16": 16, "bf16": 16}
_TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "f16": torch.float16, "bf16": torch.bfloat16}


def numbers(codes: np.ndarray, kind: str) -> np.ndarray:
    """Elements in bits as float64."""
    if kind in ("s8", "u8"):
        return codes.view(np.int8 if kind == "s8" else np.uint8).astype(np.float64)
    unsigned = torch.uint8 if BITS[kind] == 8 else torch.uint16
    return torch.from_numpy(codes.copy()).view(unsigned).view(_TORCH[kind]).double().numpy()


def draw(rows: int, columns: int, kind: str, seed: int) -> np.ndarray:
    """Element codes of moderate numbers."""
    generator = np.random.default_rng(seed)
    if kind in ("s8", "u8"):
        return generator.integers(0, 256, (rows, columns)).astype(np.uint8)
    x = torch.from_numpy(generator.normal(size=(rows, columns))).to(_TORCH[kind])
    return x.view(torch.uint8 if BITS[kind] == 8 else torch.uint16).numpy()

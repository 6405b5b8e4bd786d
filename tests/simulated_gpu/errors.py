"""What a case draws, and how far its result is from the definition's."""

from typing import NamedTuple

import torch


class Check(NamedTuple):
    """One measured error of a case and the most it may be."""

    what: str
    error: float
    bound: float


def draw(*shape: int, seed: int = 0, dtype=torch.bfloat16, scale: float = 1.0) -> torch.Tensor:
    """Normal values."""
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def relative(got, want) -> float:
    """The L2 norm of the difference over that of `want`, NaN where one of them has a value that is not finite."""
    return float((got.double() - want.double()).norm() / want.double().norm())


def unequal(got, want) -> float:
    """The share of elements that differ."""
    if got.dtype != want.dtype or got.shape != want.shape:
        return float("nan")
    same = (got == want) | (got.isnan() & want.isnan()) if got.is_floating_point() else got == want
    return float((~same).double().mean())


def code_error(got, want) -> list[Check]:
    """Codes may be a neighbor in a thousandth of the places, scales differ in a last place of float32's exp."""
    difference = (got[0].int() - want[0].int()).abs()
    return [
        Check("largest difference of codes", float(difference.max()), 1),
        Check("share of codes that differ", float((difference > 0).double().mean()), 1e-3),
        Check("scales", relative(got[1], want[1]), 1e-5),
    ]

"""Rounding by exact rational arithmetic: the oracle of the emulator's floating-point tests, apart from all of its
code."""

import math
from fractions import Fraction

# name: stored mantissa bits, exponent of the smallest normal number, largest finite value, has infinity
FORMATS = {
    "f32": (23, -126, Fraction(2**24 - 1) * 2**104, True),
    "f16": (10, -14, Fraction(65504), True),
    "bf16": (7, -126, Fraction(2**8 - 1) * 2**120, True),
    "e4m3": (3, -6, Fraction(448), False),
    "e5m2": (2, -14, Fraction(57344), True),
}


def _whole(x: Fraction, mode: str) -> int:
    low = math.floor(x)
    if mode == "rn":
        rest = x - low
        return low + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1))
    return {"rm": low, "rp": math.ceil(x), "rz": math.trunc(x)}[mode]


def rounded(x: Fraction, kind: str, mode: str = "rn", satfinite: bool = False) -> float:
    """x in a format, as a float; `x` is not zero (a zero's sign is the caller's matter)."""
    mantissa, low, largest, has_infinity = FORMATS[kind]
    size = abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent  # 2^exponent <= |x| < 2^(exponent + 1)
    step = Fraction(2) ** (max(exponent, low) - mantissa)
    value = _whole(x / step, mode) * step
    if abs(value) > largest:
        inward = mode == "rz" or (mode == "rm" and x > 0) or (mode == "rp" and x < 0)
        value = largest if satfinite or inward or not has_infinity else math.inf
        return math.copysign(value, x)
    return math.copysign(float(abs(value)), x)

"""Floating-point formats as bit patterns: decoding, and encoding with each rounding mode, saturation and the GPU's NaN.

Sources: IEEE 754-2019 (float32, float16, directed rounding); PTX ISA 8.7, 5.2 (bf16, e4m3, e5m2) and 9.7.9.21 (`cvt`:
canonical NaN 0x7fffffff, 0x7fff, 0x7f; `.satfinite`); OCP 8-bit Floating Point Specification 1.0 (e4m3 has no infinity,
NaN is S.1111.111).

Arrays hold unsigned integers of a format's width; exact values travel as float64, in which every product of two float32
is exact.
"""

from dataclasses import dataclass

import numpy as np

# PTX name -> what rounds a float64 to a whole multiple of the last place
ROUNDING = {"rn": np.rint, "rz": np.trunc, "rm": np.floor, "rp": np.ceil, "rna": None}


@dataclass(frozen=True)
class Format:
    """A binary format: `mantissa` stored bits, `low` exponent of the smallest normal number, `largest` finite value."""

    name: str
    unsigned: type
    mantissa: int
    low: int
    largest: float
    nan: int
    infinity: int | None  # bit pattern; None where the format has none

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (8 * np.dtype(self.unsigned).itemsize - 1)


F32 = Format("f32", np.uint32, 23, -126, 3.4028234663852886e38, 0x7FFFFFFF, 0x7F800000)
F16 = Format("f16", np.uint16, 10, -14, 65504.0, 0x7FFF, 0x7C00)
BF16 = Format("bf16", np.uint16, 7, -126, 3.3895313892515355e38, 0x7FFF, 0x7F80)
E4M3 = Format("e4m3", np.uint8, 3, -6, 448.0, 0x7F, None)
E5M2 = Format("e5m2", np.uint8, 2, -14, 57344.0, 0x7F, 0x7C)
FORMATS = {f.name: f for f in (F32, F16, BF16, E4M3, E5M2)}


def _decode_bytes(kind: Format) -> np.ndarray:
    """The float32 value of each of the 256 codes of an 8-bit format."""
    code = np.arange(256)
    exponent, mantissa = (code & 127) >> kind.mantissa, code & ((1 << kind.mantissa) - 1)
    unit = 2.0 ** (np.maximum(exponent - 1, 0) + kind.low - kind.mantissa)
    value = (mantissa + np.where(exponent > 0, 1 << kind.mantissa, 0)) * unit
    if kind.infinity is None:
        value[(code & 127) == kind.nan] = np.nan
    else:
        value[(code & 127) == kind.infinity] = np.inf
        value[(code & 127) > kind.infinity] = np.nan
    return np.where(code > 127, -value, value).astype(np.float32)


_BYTES = {E4M3: _decode_bytes(E4M3), E5M2: _decode_bytes(E5M2)}


def decode(bits, kind: Format):
    """Bit patterns as float32 values (every format here is a subset of float32)."""
    if kind is F32:
        return bits.view(np.float32)
    if kind is BF16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind is F16:
        return bits.view(np.float16).astype(np.float32)
    return _BYTES[kind][bits]


def canonical(value):
    """float32 values as bits, with the one NaN that a GPU's arithmetic makes (PTX ISA 9.7.3)."""
    nan = value != value
    bits = value.view(np.uint32)
    if nan.any():
        bits = np.where(nan, np.uint32(F32.nan), bits)
    return bits


def flush(value):
    """`.ftz`: subnormal float32 values become zeros of their sign."""
    small = np.abs(value) < np.float32(2.0**-126)
    return np.where(small, np.copysign(np.float32(0), value), value) if small.any() else value


def saturate_unit(value):
    """`.sat` of floating-point arithmetic: clamped to [0, 1], NaN becomes +0."""
    clamped = np.minimum(np.maximum(value, value.dtype.type(0)), value.dtype.type(1)) + value.dtype.type(0)
    return np.where(value != value, value.dtype.type(0), clamped)


def _significand_step(value, kind: Format):
    """The distance of neighbors in `kind` at float64 `value`; the smallest subnormal below the normal range."""
    _, exponent = np.frexp(value)  # value = m * 2^exponent, 0.5 <= |m| < 1
    return np.ldexp(1.0, np.maximum(exponent - 1, kind.low) - kind.mantissa)


def round_value(value, kind: Format, rounding: str = "rn"):
    """float64 values rounded to `kind`'s precision, without limit of the exponent at its upper end."""
    step = _significand_step(value, kind)
    scaled = value / step
    rounder = ROUNDING[rounding]
    # `.rna`: to nearest, ties away from zero
    whole = np.copysign(np.floor(np.abs(scaled) + 0.5), scaled) if rounder is None else rounder(scaled)
    return np.copysign(np.where(np.isfinite(value), whole * step, value), value)


def encode(value, kind: Format, rounding: str = "rn", satfinite: bool = False):
    """float64 (or float32) values as bit patterns of `kind`, rounded once.

    Beyond the largest finite value: that value with `satfinite`, or where the rounding mode goes towards zero there, or
    where the format has no infinity; else infinity. NaN becomes the format's positive NaN."""
    value = np.asarray(value)
    if rounding == "rn" and not satfinite:
        fast = _encode_nearest(value, kind)
        if fast is not None:
            return fast
    value = value.astype(np.float64)
    rounded = round_value(value, kind, rounding)
    over = np.abs(rounded) > kind.largest
    if over.any():
        towards_zero = {"rz": True, "rm": value > 0, "rp": value < 0}.get(rounding, False)
        clamp = satfinite or kind.infinity is None
        finite = np.logical_or(clamp, np.logical_and(towards_zero, np.isfinite(value)))
        limit = np.where(finite, kind.largest, np.inf)
        rounded = np.where(over, np.copysign(limit, rounded), rounded)
    return np.where(np.isnan(value), kind.unsigned(kind.nan), _pack(rounded, kind))


def _encode_nearest(value, kind: Format):
    """To nearest even from float32 (and to float32) by the machine's own conversions; None where there is none."""
    if kind is F32:
        return canonical(value.astype(np.float32))
    if value.dtype != np.float32:
        return None
    if kind is BF16:
        bits = value.view(np.uint32)
        bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        bits = bits.astype(np.uint16)
    elif kind is F16:
        bits = value.astype(np.float16).view(np.uint16)
    else:
        return None
    nan = value != value
    return np.where(nan, kind.unsigned(kind.nan), bits) if nan.any() else bits


def _pack(value, kind: Format):
    """float64 values that `kind` holds exactly (or infinities) as its bits."""
    if kind is F32:
        return value.astype(np.float32).view(np.uint32)
    if kind is F16:
        return value.astype(np.float16).view(np.uint16)
    if kind is BF16:
        return (value.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    magnitude = np.where(np.isfinite(value), np.abs(value), 0.0)
    _, exponent = np.frexp(magnitude)
    field = np.where(magnitude > 0, np.maximum(exponent - 1 - kind.low, -1) + 1, 0)  # 0 for subnormal numbers
    unit = np.ldexp(1.0, np.maximum(field, 1) - 1 + kind.low - kind.mantissa)
    code = magnitude / unit - np.where(field > 0, 1 << kind.mantissa, 0) + field * (1 << kind.mantissa)
    if kind.infinity is not None:
        code = np.where(np.isinf(value), kind.infinity, code)
    code = np.where(np.isnan(value), 0, code).astype(kind.unsigned)
    return code | np.where(np.signbit(value), kind.unsigned(kind.sign), kind.unsigned(0))


def sum_to_odd(a, b):
    """a + b in float64, rounded to odd: rounding the result once more, in any mode, to a format of at most 51 bits
    gives what rounding the exact sum gives (Boldo and Melquiond 2008). The error of the sum is Knuth's TwoSum."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    bits = np.asarray(total).view(np.int64)
    inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(total)
    if not inexact.any():
        return total
    # The neighbor in the direction of the error has an odd last bit: away from zero if error and total agree in sign.
    away = np.signbit(error) == np.signbit(total)
    return np.where(inexact, bits + np.where(away, 1, -1), bits).view(np.float64)

"""cvt: between integers, floating-point formats and packed pairs of them, with rounding modes and saturation.

Source: PTX ISA 8.7, 9.7.9.21 and 9.7.9.22. Integer results of floating-point values saturate, NaN gives 0; `.sat`
clamps an integer to the result's range, a float to [0, 1]; `.satfinite` clamps to the largest finite value. A result
narrower than its register is sign- or zero-extended into it.
"""

import re

import numpy as np

from .formats import F32, FORMATS, decode, encode, flush, saturate_unit
from .integers import UNSIGNED, as_bits, number_type

_INTEGER_ROUNDING = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_FLAGS = r"((?:\.(?:rn|rz|rm|rp|rna|rni|rzi|rmi|rpi|ftz|sat|satfinite|relu))*)"
_SCALAR = re.compile(rf"cvt{_FLAGS}\.([a-z]+\d+)\.([a-z]+\d+)")
_PAIR = re.compile(rf"cvt{_FLAGS}\.(f16|bf16|e4m3|e5m2)x2\.(f32|f16x2|e4m3x2|e5m2x2)")
_INTEGER = re.compile(r"([su])(8|16|32|64)")


def _narrow(a, kind):
    """The low bits of a register that is wider than the source type."""
    width = UNSIGNED[8 * np.dtype(kind).itemsize]
    return (a if a.dtype == width else a.astype(width)).view(kind)


def _extended(value):
    """Bits in a register of at least 16 bits, extended by the number's sign."""
    if value.dtype.itemsize > 1:
        return as_bits(value)
    return as_bits(value.astype(np.int16 if value.dtype == np.int8 else np.uint16))


def _integer_to_integer(target, source, saturate: bool):
    limits = np.iinfo(target)

    def run(a):
        value = _narrow(a, source)
        if saturate:
            low, high = max(limits.min, np.iinfo(source).min), min(limits.max, np.iinfo(source).max)
            value = np.clip(value, source(low), source(high))
        return _extended(np.asarray(value).astype(target))

    return run


def _float_to_integer(target, kind, rounding, ftz: bool):
    limits = np.iinfo(target)
    bound = 2.0 ** (8 * np.dtype(target).itemsize - (limits.min < 0))  # the least number above the range

    def run(a):
        value = decode(a, kind)
        value = rounding((flush(value) if ftz else value).astype(np.float64))
        inside = np.where((value > limits.min) & (value < bound), value, 0).astype(target)
        inside = np.where(value >= bound, target(limits.max), np.where(value <= limits.min, target(limits.min), inside))
        return _extended(np.where(value != value, target(0), inside))

    return run


def _integer_to_float(kind, source, rounding: str):
    if np.dtype(source).itemsize < 8:  # exact in float64
        return lambda a: encode(_narrow(a, source).astype(np.float64), kind, rounding)
    if (
        kind is F32 and rounding == "rn"
    ):  # exact in an 80-bit or wider long double, which is converted with one rounding
        return lambda a: _narrow(a, source).astype(np.longdouble).astype(np.float32).view(np.uint32)
    return None


def _round_to_whole(kind, rounding, saturate: bool):
    def run(a):
        value = rounding(decode(a, kind).astype(np.float64))
        return encode(saturate_unit(value) if saturate else value, kind)

    return run


def _float_to_float(target, source, rounding: str, flags: set):
    def run(a):
        value = decode(a, source)
        if "ftz" in flags:
            value = flush(value)
        if "relu" in flags:
            value = np.where(value > 0, value, np.where(value != value, value, np.float32(0))).astype(np.float32)
        if "sat" in flags:
            value = saturate_unit(value)
        return encode(value, target, rounding, "satfinite" in flags)

    return run


def _scalar(flags: list[str], target: str, source: str):
    to, of = _INTEGER.fullmatch(target), _INTEGER.fullmatch(source)
    rounding = next((r for r in flags if r in ("rn", "rz", "rm", "rp", "rna")), "rn")
    whole = next((_INTEGER_ROUNDING[r] for r in flags if r in _INTEGER_ROUNDING), None)
    if to and of:
        return _integer_to_integer(number_type(to[1], int(to[2])), number_type(of[1], int(of[2])), "sat" in flags), int(
            of[2]
        )
    if to and source in FORMATS and whole:
        kind = FORMATS[source]
        return _float_to_integer(number_type(to[1], int(to[2])), kind, whole, "ftz" in flags), _bits(kind)
    if of and target in FORMATS:
        run = _integer_to_float(FORMATS[target], number_type(of[1], int(of[2])), rounding)
        return run and (run, int(of[2]))
    if target in FORMATS and source in FORMATS:
        kind = FORMATS[source]
        if whole:
            return (_round_to_whole(kind, whole, "sat" in flags), _bits(kind)) if target == source else None
        return _float_to_float(FORMATS[target], kind, rounding, set(flags)), _bits(kind)
    return None


def _bits(kind) -> int:
    return 8 * np.dtype(kind.unsigned).itemsize


def find(opcode: str):
    """(function on bits, number of sources, bits of each) of a cvt, or None if it is none."""
    if found := _PAIR.fullmatch(opcode):
        flags = found[1].split(".")[1:]
        target, source = FORMATS[found[2]], found[3]
        rounding = next((r for r in flags if r in ("rn", "rz", "rna")), "rn")
        if source == "f32":  # d = {a (upper), b (lower)}
            one = _float_to_float(target, F32, rounding, set(flags))
            return (lambda a, b: _join(one(b), one(a))), 2, 32
        one = _float_to_float(target, FORMATS[source.removesuffix("x2")], rounding, set(flags))
        return (lambda a: _join(*[one(x) for x in _halves(a, source)])), 1, 32 if source == "f16x2" else 16
    if (found := _SCALAR.fullmatch(opcode)) and (scalar := _scalar(found[1].split(".")[1:], found[2], found[3])):
        return scalar[0], 1, scalar[1]
    return None


def _halves(a, source: str):
    """The lower and the upper element of a packed pair."""
    bits = 16 if source == "f16x2" else 8
    narrow = UNSIGNED[bits]
    return (a & a.dtype.type((1 << bits) - 1)).astype(narrow), (a >> a.dtype.type(bits)).astype(narrow)


def _join(low, high):
    """Two elements in one register of twice their width."""
    bits = 8 * low.dtype.itemsize
    wide = UNSIGNED[2 * bits]
    return low.astype(wide) | (high.astype(wide) << wide(bits))

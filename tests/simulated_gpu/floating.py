"""Floating-point instructions on bit patterns: add, sub, mul, fma, div, sqrt, min, max, the approximate functions.

Source: PTX ISA 8.7, 9.7.3 (f32), 9.7.4 (f16, bf16, packed pairs), 9.7.5 (mixed precision). `.approx` and `div.full` are
computed exactly and rounded once: the hardware's own errors (2^-22 and the like) are not emulated. A result that is NaN
is the canonical one; float16 and bfloat16 results are rounded once from the exact value, also for fma.
"""

import re

import numpy as np

from .formats import BF16, F16, F32, FORMATS, canonical, decode, encode, flush, saturate_unit, sum_to_odd

_HALF_WAY = np.uint64(0x10000000)  # of the 29 bits that float64 has more than float32
_LOW_BITS = np.uint64(0x1FFFFFFF)


def _terms(name: str, values):
    """The exact terms of a sum in float64; the product alone for mul."""
    a, b, *c = (np.asarray(x, np.float64) for x in values)
    return {"add": lambda: (a, b), "sub": lambda: (a, -b), "mul": lambda: (a * b,), "fma": lambda: (a * b, *c)}[name]()


def _exact(name: str, values, rounding: str):
    """The result in float64, rounded so that one more rounding is correct. A sum of exactly zero is -0 in rounding
    down, unless both terms are +0 (IEEE 754-2019, 6.3)."""
    terms = _terms(name, values)
    if len(terms) == 1:
        return terms[0]
    value = sum_to_odd(*terms)
    if rounding == "rm":
        value = np.where((value == 0) & (np.signbit(terms[0]) | np.signbit(terms[1])), -0.0, value)
    return value


def fma_f32(a, b, c):
    """a * b + c of float32 values with one rounding to nearest."""
    wide = a.astype(np.float64) * b + c
    near = wide.astype(np.float32)
    # This rounded twice, which matters where float64 is half-way between two float32, and below float32's normal range.
    risky = ((wide.view(np.uint64) & _LOW_BITS) == _HALF_WAY) | ((np.abs(wide) < 2.0**-125) & (wide != 0))
    if risky.any():
        once = sum_to_odd(a.astype(np.float64) * b, np.asarray(c, np.float64)).astype(np.float32)
        near = np.where(risky, once, near)
    return near


_NEAREST = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": fma_f32}


def _f32_arithmetic(name: str, rounding: str, ftz: bool, saturate: bool):
    nearest = _NEAREST[name]
    if rounding == "rn" and not ftz and not saturate:
        return lambda *operands: canonical(nearest(*[x.view(np.float32) for x in operands]))

    def run(*operands):
        values = [flush(x.view(np.float32)) if ftz else x.view(np.float32) for x in operands]
        if rounding == "rn":
            value = nearest(*values)
        else:
            value = encode(_exact(name, values, rounding), F32, rounding).view(np.float32)
        value = flush(value) if ftz else value
        return canonical(saturate_unit(value) if saturate else value)

    return run


def _half_arithmetic(name: str, kind, rounding: str, ftz: bool, saturate: bool):
    def flush_half(x):
        return np.where(np.abs(x) < 2.0**kind.low, np.copysign(x.dtype.type(0), x), x) if ftz else x

    def run(*operands):
        value = _exact(name, [flush_half(decode(x, kind)) for x in operands], rounding)
        value = saturate_unit(value) if saturate else value
        bits = encode(value, kind, rounding)
        return encode(flush_half(decode(bits, kind)), kind) if ftz else bits

    return run


def _minmax(name: str, kind, nan_wins: bool, ftz: bool):
    """min, max: the other operand where one is NaN (NaN with `.NaN`); -0 is less than +0."""
    smaller = name == "min"

    def run(a, b):
        x, y = decode(a, kind), decode(b, kind)
        if ftz:
            x, y = flush(x), flush(y)
        value = np.fmin(x, y) if smaller else np.fmax(x, y)
        zeros = (x == 0) & (y == 0)
        if zeros.any():
            negative = np.signbit(x) | np.signbit(y) if smaller else np.signbit(x) & np.signbit(y)
            value = np.where(zeros, np.copysign(np.float32(0), np.where(negative, -1, 1)), value).astype(np.float32)
        if nan_wins:
            value = np.where((x != x) | (y != y), np.float32(np.nan), value)
        return canonical(value) if kind is F32 else encode(value.astype(np.float32), kind)

    return run


def _divide(ftz: bool):
    def run(a, b):
        x, y = a.view(np.float32), b.view(np.float32)
        return canonical(flush(np.divide(flush(x), flush(y))) if ftz else np.divide(x, y))

    return run


_FUNCTIONS = {
    "ex2": np.exp2, "lg2": np.log2, "rsqrt": lambda x: 1 / np.sqrt(x), "rcp": lambda x: 1 / x, "sqrt": np.sqrt,
    "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
}  # fmt: skip


def _function(name: str, kind, ftz: bool):
    exact = _FUNCTIONS[name]

    def run(a):
        x = decode(a, kind)
        y = encode(exact((flush(x) if ftz else x).astype(np.float64)), kind)
        return canonical(flush(y.view(np.float32))) if ftz and kind is F32 else y

    return run


def _sign(name: str, kind):
    sign = kind.unsigned(kind.sign)
    return (lambda a: a ^ sign) if name == "neg" else (lambda a: a & ~sign)


def packed(operation, width: int):
    """An operation on two elements of `width` bits, packed into one register of twice that."""
    narrow, wide = {16: (np.uint16, np.uint32), 32: (np.uint32, np.uint64)}[width]
    mask, shift = wide((1 << width) - 1), wide(width)

    def run(*operands):
        low = operation(*[(x & mask).astype(narrow) for x in operands])
        high = operation(*[(x >> shift).astype(narrow) for x in operands])
        return low.astype(wide) | (high.astype(wide) << shift)

    return run


_ARITHMETIC = re.compile(r"(add|sub|mul|fma)((?:\.(?:rn|rz|rm|rp|ftz|sat))*)\.(f32|f16|bf16)(x2)?")
_OTHER = re.compile(
    r"(min|max|neg|abs|div|ex2|lg2|rsqrt|rcp|sqrt|sin|cos|tanh)((?:\.(?:NaN|ftz|approx|full|rn))*)\.(f32|f16|bf16)(x2)?"
)


def find(opcode: str):
    """(function on bits, number of sources, bits of each) of a floating-point opcode, or None if it is none."""
    found = _ARITHMETIC.fullmatch(opcode) or _OTHER.fullmatch(opcode)
    if found is None:
        return None
    name, kind, flags = found[1], FORMATS[found[3]], set(found[2].split(".")[1:])
    ftz, rounding = "ftz" in flags, next((r for r in ("rz", "rm", "rp") if r in flags), "rn")
    if name in _NEAREST:
        if kind is F32:
            run = _f32_arithmetic(name, rounding, ftz, "sat" in flags)
        else:
            run = _half_arithmetic(name, kind, rounding, ftz, "sat" in flags)
    elif name in ("min", "max"):
        run = _minmax(name, kind, "NaN" in flags, ftz)
    elif name in ("neg", "abs"):
        run = _sign(name, kind)
    elif name == "div":
        if kind is not F32:
            return None
        run = _divide(ftz)
    else:
        run = _function(name, kind, ftz)
    width = {F32: 32, F16: 16, BF16: 16}[kind]
    count = {"fma": 3, "add": 2, "sub": 2, "mul": 2, "min": 2, "max": 2, "div": 2}.get(name, 1)
    return (packed(run, width), count, 2 * width) if found[4] else (run, count, width)

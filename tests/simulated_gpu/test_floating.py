"""Floating-point instructions against exact rational arithmetic, in every rounding mode, with NaN, infinities and
signed zeros."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from .exact import rounded
from .program import evaluate

NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF, "bf16": 0x7FFF}
UNSIGNED = {"f32": np.uint32, "f16": np.uint16, "bf16": np.uint16}
# Zeros, infinities, NaN, the smallest and largest subnormal and normal numbers, ones with a last bit, a number and its
# opposite.
SPECIAL = {
    "f32": [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00000, 1, 0x80000001, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0xFF7FFFFF,
            0x3F800000, 0x3F800001, 0xBF800000, 0xBF800001, 0x33800000, 0x3F000000, 0x4B800001],
    "f16": [0, 0x8000, 0x7C00, 0xFC00, 0x7E00, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0xFBFF, 0x3C00, 0x3C01, 0xBC00, 0xBC01, 0x1000],
    "bf16": [0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 1, 0x8001, 0x7F, 0x80, 0x7F7F, 0xFF7F, 0x3F80, 0x3F81, 0xBF80, 0xBF81, 0x3B80],
}  # fmt: skip
# Bits to keep and to set for numbers between 0.5 and 2 in size.
NEAR = {"f32": (0x80FFFFFF, 0x3F000000), "f16": (0x87FF, 0x3800), "bf16": (0x80FF, 0x3F00)}


def values(bits, kind):
    """Bit patterns as Python floats."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << 16).view(np.float32).tolist()
    return bits.view({"f32": np.float32, "f16": np.float16}[kind]).tolist()


def to_bits(value: float, kind: str) -> int:
    if math.isnan(value):
        return NAN[kind]
    if kind == "f16":
        return int(np.float16(value).view(np.uint16))
    bits = int(np.float32(value).view(np.uint32))
    return bits >> 16 if kind == "bf16" else bits


def operands(kind: str, count: int) -> list[np.ndarray]:
    """Special values in all pairs (for three operands with each as the addend in turn), then random bit patterns whose
    exponents are close, so that sums cancel and round."""
    special = SPECIAL[kind]
    rows = [(*pair, special[n % len(special)]) for n, pair in enumerate(itertools.product(special, repeat=2))]
    generator, bits = np.random.default_rng(0), 8 * np.dtype(UNSIGNED[kind]).itemsize
    drawn = generator.integers(0, 1 << bits, (200, 3))
    kept, exponent = NEAR[kind]
    near = drawn & kept | exponent
    return [np.array(column, UNSIGNED[kind]) for column in zip(*rows, *drawn.tolist(), *near.tolist(), strict=True)][
        :count
    ]


def expected(name: str, given: tuple[float, ...], kind: str, mode: str) -> float:
    a, b, c = (*given, 0.0)[:3] if len(given) == 2 else given
    if name in ("add", "sub"):
        terms = (a, -b if name == "sub" else b)
    else:
        terms = (a * b, c) if name == "fma" else (a * b,)
    plain = sum(terms[1:], terms[0])
    if not all(map(math.isfinite, given)):
        return plain
    exact = (
        Fraction(a) * Fraction(b) + (Fraction(c) if name == "fma" else 0)
        if name in ("mul", "fma")
        else sum(map(Fraction, terms))
    )
    if exact:
        return rounded(exact, kind, mode)
    if len(terms) == 1:
        return terms[0]
    negative = [math.copysign(1, t) < 0 for t in terms]
    return -0.0 if all(negative) or (mode == "rm" and any(negative)) else 0.0


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_float32_rounds_the_exact_result_once(name, mode):
    given = operands("f32", 3 if name == "fma" else 2)
    got = evaluate(f"{name}.{mode}.f32", *given, bits=32)
    want = [
        to_bits(expected(name, row, "f32", mode), "f32") for row in zip(*[values(g, "f32") for g in given], strict=True)
    ]
    assert got.tolist() == want


def test_fma_is_not_rounded_to_float64_first():
    """a * b is half a last place of c, and 2^-58 or so more or less: float64 cannot tell, and ties would go to even."""
    a, b = np.float32(2.0**-12 * (1 + 2896 * 2.0**-23)), np.float32(2.0**-12 * (1 - 2895 * 2.0**-23))
    d, e = np.float32(2.0**-12 * (1 + 2897 * 2.0**-23)), np.float32(2.0**-12 * (1 - 2896 * 2.0**-23))
    rows = [(a, b, np.float32(1)), (d, e, np.float32(1 + 2.0**-23)), (-a, b, np.float32(-1))]
    given = [np.array(column, np.float32).view(np.uint32) for column in zip(*rows, strict=True)]
    want = [1 + 2.0**-23, 1 + 2.0**-23, -1 - 2.0**-23]
    assert evaluate("fma.rn.f32", *given, bits=32).view(np.float32).tolist() == want


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_half_precision_rounds_once_and_packed_pairs_are_two_of_it(name, kind):
    given = operands(kind, 3 if name == "fma" else 2)
    got = evaluate(f"{name}.rn.{kind}", *given, bits=16)
    want = [
        to_bits(expected(name, row, kind, "rn"), kind) for row in zip(*[values(g, kind) for g in given], strict=True)
    ]
    assert got.tolist() == want
    pairs = [g.astype(np.uint32) | (g[::-1].astype(np.uint32) << 16) for g in given]
    got = evaluate(f"{name}.rn.{kind}x2", *pairs, bits=32)
    assert (got & 0xFFFF).tolist() == want and (got >> 16).tolist() == want[::-1]


@pytest.mark.parametrize("name", ["add", "mul", "fma"])
def test_packed_float32_is_two_of_it(name):
    given = operands("f32", 3 if name == "fma" else 2)
    want = evaluate(f"{name}.rn.f32", *given, bits=32)
    got = evaluate(f"{name}.rn.f32x2", *[g | (g[::-1].astype(np.uint64) << np.uint64(32)) for g in given], bits=64)
    assert np.array_equal(got.astype(np.uint32), want) and np.array_equal(
        (got >> np.uint64(32)).astype(np.uint32), want[::-1]
    )


def test_ftz_flushes_operands_and_results():
    tiny, normal, half = 0x007FFFFF, 0x00800000, 0x3F000000
    a, b = np.array([tiny, 0x80000001, normal], np.uint32), np.array([0x3F800000, 0x3F800000, half], np.uint32)
    assert evaluate("mul.rn.ftz.f32", a, b, bits=32).tolist() == [0, 1 << 31, 0]
    assert evaluate("mul.rn.f32", a, b, bits=32).tolist() == [tiny, 0x80000001, 0x00400000]


def test_sat_clamps_to_the_unit_interval():
    a = np.array([-1.0, 0.25, 2.0, np.nan, -0.0], np.float32).view(np.uint32)
    got = evaluate("add.rn.sat.f32", a, np.zeros(5, np.uint32), bits=32).view(np.float32)
    assert got.tolist() == [0.0, 0.25, 1.0, 0.0, 0.0] and not np.signbit(got).any()


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_min_and_max(name, nan, kind):
    """NaN loses to a number, or wins with .NaN; -0 is below +0."""
    given = operands(kind, 2)
    pick = min if name == "min" else max

    def one(a, b):
        if math.isnan(a) or math.isnan(b):
            return math.nan if nan or (math.isnan(a) and math.isnan(b)) else (b if math.isnan(a) else a)
        return pick(a, b, key=lambda x: (x, math.copysign(1, x)))

    got = evaluate(f"{name}{nan}.{kind}", *given, bits=16 if kind != "f32" else 32)
    pairs = zip(*[values(g, kind) for g in given], strict=True)
    assert got.tolist() == [to_bits(one(a, b), kind) for a, b in pairs]


def test_neg_and_abs_touch_the_sign_alone():
    a = operands("f32", 1)[0]
    assert np.array_equal(evaluate("neg.f32", a, bits=32), a ^ np.uint32(1 << 31))
    assert np.array_equal(evaluate("abs.f32", a, bits=32), a & np.uint32(0x7FFFFFFF))
    assert np.array_equal(evaluate("abs.bf16x2", a, bits=32), a & np.uint32(0x7FFF7FFF))


@pytest.mark.parametrize("opcode", ["div.full.f32", "div.rn.f32"])
def test_division(opcode):
    a, b = operands("f32", 2)
    with np.errstate(all="ignore"):
        want = a.view(np.float32) / b.view(np.float32)  # IEEE division, rounded once
    got = evaluate(opcode, a, b, bits=32)
    assert np.array_equal(got, np.where(np.isnan(want), np.uint32(NAN["f32"]), want.view(np.uint32)))


@pytest.mark.parametrize(
    "name, function",
    [
        ("ex2", lambda x: 2.0**x),
        ("lg2", math.log2),
        ("rsqrt", lambda x: x**-0.5),
        ("rcp", lambda x: 1 / x),
        ("sqrt", math.sqrt),
    ],
)
def test_approximate_functions_are_computed_exactly(name, function):
    x = np.array([0.1, 1.0, 3.5, 100.25], np.float32)
    got = evaluate(f"{name}.approx.ftz.f32", x.view(np.uint32), bits=32).view(np.float32)
    assert got.tolist() == [float(np.float32(function(v))) for v in x.tolist()]


def test_ends_of_approximate_functions():
    x = np.array([-np.inf, np.inf, np.nan, -127.0, 0.0, -0.0, -1.0], np.float32).view(np.uint32)
    assert evaluate("ex2.approx.ftz.f32", x, bits=32).tolist() == [
        0,
        0x7F800000,
        0x7FFFFFFF,
        0,
        0x3F800000,
        0x3F800000,
        0x3F000000,
    ]
    assert evaluate("ex2.approx.f32", x, bits=32)[3] == 0x00400000  # subnormal without .ftz
    assert evaluate("rsqrt.approx.ftz.f32", x, bits=32)[[0, 4, 5]].tolist() == [0x7FFFFFFF, 0x7F800000, 0xFF800000]

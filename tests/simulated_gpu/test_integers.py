"""Integer, logic, shift and comparison instructions against Python's integers and numpy."""

import itertools
import math

import numpy as np
import pytest

from .program import evaluate
from .test_floating import operands, values

EDGES = {16: np.uint16, 32: np.uint32, 64: np.uint64}


def edges(bits: int, count: int) -> list[np.ndarray]:
    """Zero, one, the ends of both ranges and their neighbors, in all pairs, then random patterns."""
    ends = [0, 1, 2, 3, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2 ** (bits - 1) + 1, 2**bits - 1, 2**bits - 2, 77]
    rows = [(a, b, ends[n % 10]) for n, (a, b) in enumerate(itertools.product(ends, repeat=2))]
    drawn = np.random.default_rng(1).integers(0, 2**64, (60, 3), np.uint64)
    return [np.array(column, np.uint64).astype(EDGES[bits]) for column in zip(*rows, *drawn.tolist(), strict=True)][
        :count
    ]


def signed(value: int, bits: int, letter: str) -> int:
    return value - 2**bits if letter == "s" and value >> (bits - 1) else value


def truncated(a: int, b: int) -> int:
    """Division towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


OPERATIONS = {
    "add": (2, lambda a, b: a + b), "sub": (2, lambda a, b: a - b), "mul.lo": (2, lambda a, b: a * b),
    "min": (2, min), "max": (2, max), "abs": (1, abs), "neg": (1, lambda a: -a),
    "div": (2, lambda a, b: truncated(a, b) if b else -1), "rem": (2, lambda a, b: a - b * truncated(a, b) if b else -1),
    "mad.lo": (3, lambda a, b, c: a * b + c),
}  # fmt: skip


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("letter", ["s", "u"])
@pytest.mark.parametrize("name", [*OPERATIONS, "mul.hi", "mad.hi"])
def test_arithmetic_wraps(name, letter, bits):
    if name.endswith(".hi"):
        count = 2 if name == "mul.hi" else 3

        def function(a, b, c=0):
            return ((a * b) >> bits) + c
    else:
        count, function = OPERATIONS[name]
    given = edges(bits, count)
    rows = zip(*[[signed(v, bits, letter) for v in g.tolist()] for g in given], strict=True)
    got = evaluate(f"{name}.{letter}{bits}", *given, bits=bits)
    assert got.tolist() == [function(*row) & (2**bits - 1) for row in rows]


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("letter", ["s", "u"])
def test_wide_products(letter, bits):
    a, b = edges(bits, 2)
    c = np.random.default_rng(2).integers(0, 2**31, len(a)).astype(EDGES[2 * bits])
    product = [signed(x, bits, letter) * signed(y, bits, letter) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    mask = 2 ** (2 * bits) - 1
    assert evaluate(f"mul.wide.{letter}{bits}", a, b, bits=2 * bits).tolist() == [p & mask for p in product]
    got = evaluate(f"mad.wide.{letter}{bits}", a, b, c, bits=2 * bits)
    assert got.tolist() == [(p + x) & mask for p, x in zip(product, c.tolist(), strict=True)]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_shifts_beyond_the_width(bits):
    a = edges(bits, 1)[0]
    n = np.resize(np.array([0, 1, bits - 1, bits, bits + 1, 255, 2**31, 2**32 - 1], np.uint32), len(a))
    pairs = list(zip(a.tolist(), n.tolist(), strict=True))
    mask = 2**bits - 1
    assert evaluate(f"shl.b{bits}", a, n, bits=bits).tolist() == [(x << k) & mask if k < bits else 0 for x, k in pairs]
    assert evaluate(f"shr.u{bits}", a, n, bits=bits).tolist() == [x >> k if k < bits else 0 for x, k in pairs]
    arithmetic = [(signed(x, bits, "s") >> min(k, bits - 1)) & mask for x, k in pairs]
    assert evaluate(f"shr.s{bits}", a, n, bits=bits).tolist() == arithmetic


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
@pytest.mark.parametrize("direction", ["l", "r"])
def test_funnel_shifts(direction, mode):
    a, b = edges(32, 2)
    n = np.resize(np.array([0, 1, 31, 32, 33, 64], np.uint32), len(a))

    def one(low, high, k):
        k = k % 32 if mode == "wrap" else min(k, 32)
        both = low | high << 32
        return (both >> k if direction == "r" else (both << k) >> 32) & 0xFFFFFFFF

    rows = zip(a.tolist(), b.tolist(), n.tolist(), strict=True)
    assert evaluate(f"shf.{direction}.{mode}.b32", a, b, n, bits=32).tolist() == [one(*row) for row in rows]


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    a, b = edges(bits, 2)
    assert np.array_equal(evaluate(f"and.b{bits}", a, b, bits=bits), a & b)
    assert np.array_equal(evaluate(f"or.b{bits}", a, b, bits=bits), a | b)
    assert np.array_equal(evaluate(f"xor.b{bits}", a, b, bits=bits), a ^ b)
    assert np.array_equal(evaluate(f"not.b{bits}", a, bits=bits), ~a)


def test_predicates():
    p, q = np.array([False, False, True, True]), np.array([False, True, False, True])
    for name, want in (("and", p & q), ("or", p | q), ("xor", p ^ q)):
        assert evaluate(f"{name}.pred", p, q, bits=0).tolist() == want.tolist()
    assert evaluate("not.pred", p, bits=0).tolist() == [1, 1, 0, 0]
    a, b = np.array([1, 2, 3, 4], np.uint32), np.array([5, 6, 7, 8], np.uint32)
    assert evaluate("selp.b32", a, b, p, bits=32).tolist() == [5, 6, 3, 4]


@pytest.mark.parametrize("letter", ["s", "u"])
def test_bit_fields(letter):
    a = np.resize(edges(32, 1)[0], 480)
    start, length = (
        np.resize(np.array(x, np.uint32), 480) for x in ([0, 1, 7, 24, 31, 32, 40], [0, 1, 8, 31, 32, 33, 255, 3])
    )

    def one(x, s, n):
        value = signed(x, 32, letter)
        bit = [(value >> min(s + k, 31 if letter == "s" else 10**3)) & 1 for k in range(min(n, 32))]
        if n == 0:
            return 0
        fill = bit[-1] if letter == "s" else 0
        return sum((bit[k] if k < len(bit) else fill) << k for k in range(32))

    rows = zip(a.tolist(), start.tolist(), length.tolist(), strict=True)
    assert evaluate(f"bfe.{letter}32", a, start, length, bits=32).tolist() == [one(*row) for row in rows]


def test_bit_field_insert():
    a, b = edges(32, 2)
    start, length = (np.resize(np.array(x, np.uint32), len(a)) for x in ([0, 5, 24, 31, 32], [0, 1, 8, 32, 40]))

    def one(x, y, s, n):
        mask = sum(1 << k for k in range(s, min(s + n, 32)))
        return (y & ~mask) | ((x << s) & mask)

    rows = zip(a.tolist(), b.tolist(), start.tolist(), length.tolist(), strict=True)
    assert evaluate("bfi.b32", a, b, start, length, bits=32).tolist() == [one(*row) for row in rows]


def test_byte_permutation():
    a, b = edges(32, 2)
    selector = np.random.default_rng(3).integers(0, 2**16, len(a)).astype(np.uint32)

    def one(x, y, s):
        data = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        nibbles = [(s >> 4 * k) & 15 for k in range(4)]
        picked = [(255 * (data[n & 7] >> 7)) if n & 8 else data[n & 7] for n in nibbles]
        return int.from_bytes(picked, "little")

    rows = zip(a.tolist(), b.tolist(), selector.tolist(), strict=True)
    assert evaluate("prmt.b32", a, b, selector, bits=32).tolist() == [one(*row) for row in rows]


@pytest.mark.parametrize("bits", [32, 64])
def test_counting_bits(bits):
    a = edges(bits, 1)[0]
    assert evaluate(f"popc.b{bits}", a, bits=32).tolist() == [v.bit_count() for v in a.tolist()]
    assert evaluate(f"clz.b{bits}", a, bits=32).tolist() == [bits - v.bit_length() for v in a.tolist()]
    assert evaluate(f"brev.b{bits}", a, bits=bits).tolist() == [int(f"{v:0{bits}b}"[::-1], 2) for v in a.tolist()]


def test_three_input_logic():
    a, b, c = edges(32, 3)
    assert np.array_equal(evaluate("lop3.b32", a, b, c, bits=32, immediates=", 0x96"), a ^ b ^ c)
    assert np.array_equal(evaluate("lop3.b32", a, b, c, bits=32, immediates=", 0xCA"), (a & b) | (~a & c))


COMPARE = {"eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
           "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b}  # fmt: skip


@pytest.mark.parametrize("name", COMPARE)
@pytest.mark.parametrize("kind", ["s16", "u16", "b32", "s32", "u32", "s64", "u64"])
def test_integer_comparisons(kind, name):
    letter, bits = kind[0], int(kind[1:])
    a, b = edges(bits, 2)
    rows = [[signed(v, bits, letter) for v in x.tolist()] for x in (a, b)]
    want = [int(COMPARE[name](x, y)) for x, y in zip(*rows, strict=True)]
    assert evaluate(f"setp.{name}.{kind}", a, b, bits=0).tolist() == want


@pytest.mark.parametrize("kind", ["f32", "bf16"])
@pytest.mark.parametrize("name", [*COMPARE, *(f"{n}u" for n in COMPARE), "num", "nan"])
def test_float_comparisons(name, kind):
    """Ordered ones are false with a NaN, `ne` too; unordered ones true. Both zeros are equal."""
    a, b = operands(kind, 2)

    def one(x, y):
        nan = math.isnan(x) or math.isnan(y)
        if name in ("num", "nan"):
            return nan == (name == "nan")
        return name.endswith("u") if nan else COMPARE[name.removesuffix("u")](x, y)

    pairs = zip(values(a, kind), values(b, kind), strict=True)
    assert evaluate(f"setp.{name}.{kind}", a, b, bits=0).tolist() == [int(one(x, y)) for x, y in pairs]

"""Integer, logic, comparison and selection instructions on bit patterns.

Source: PTX ISA 8.7, 9.7.1 (integer arithmetic), 9.7.6 and 9.7.7 (set, setp, selp), 9.7.8 (logic and shift), 9.7.9.7
(prmt). Division by zero is "unspecified" there: all ones here.
"""

import re

import numpy as np

from .formats import FORMATS, decode, flush

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}


def number_type(letter: str, bits: int):
    """numpy's type for a PTX type letter: s (signed), u or b (unsigned)."""
    return SIGNED[bits] if letter == "s" else UNSIGNED[bits]


def as_bits(value):
    """The same bytes as unsigned integers."""
    return value.view(UNSIGNED[8 * value.dtype.itemsize])


def _typed(function, kind):
    """`function` on operands read as `kind`, its result as bits."""
    return lambda *x: as_bits(np.asarray(function(*[v.view(kind) for v in x])).astype(kind))


def _truncating_divide(kind):
    unsigned = UNSIGNED[8 * np.dtype(kind).itemsize]

    def size(x):
        return np.asarray(np.where(x < 0, -x, x)).view(unsigned)  # of the lowest number too, which has no positive

    def run(a, b):
        quotient = (size(a) // np.maximum(size(b), unsigned(1))).view(kind)
        quotient = np.where((a < 0) != (b < 0), -quotient, quotient)
        return np.where(b == 0, kind(-1), quotient)

    return run


def _divide(kind):
    if np.issubdtype(kind, np.signedinteger):
        return _truncating_divide(kind)
    return lambda a, b: np.where(b == 0, np.iinfo(kind).max, a // np.maximum(b, kind(1)))


def _remainder(kind):
    def run(a, b):
        rest = np.fmod(a, np.where(b == 0, kind(1), b))  # the sign of a, as C's %
        return np.where(b == 0, kind(-1) if np.issubdtype(kind, np.signedinteger) else np.iinfo(kind).max, rest)

    return run


def _high_part(kind, bits: int):
    """The upper half of a product."""
    if bits == 64:
        exact = np.frompyfunc(lambda a, b: (int(a) * int(b)) >> 64, 2, 1)
        return lambda a, b: np.asarray(exact(a, b)).astype(kind)
    wide = np.int64 if np.issubdtype(kind, np.signedinteger) else np.uint64
    return lambda a, b: ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(kind)


def _arithmetic(name: str, letter: str, bits: int):
    kind = number_type(letter, bits)
    high = _high_part(kind, bits) if name.endswith(".hi") else None
    functions = {
        "add": np.add, "sub": np.subtract, "mul.lo": np.multiply, "mul.hi": high, "min": np.minimum, "max": np.maximum,
        "abs": np.abs, "neg": np.negative, "div": _divide(kind), "rem": _remainder(kind),
        "mad.lo": lambda a, b, c: a * b + c, "mad.hi": lambda a, b, c: high(a, b) + c,
    }  # fmt: skip
    return _typed(functions[name], kind)


def _wide(name: str, letter: str, bits: int):
    narrow, wide = number_type(letter, bits), number_type(letter, 2 * bits)

    def run(a, b, c=None):
        product = as_bits(np.asarray(a.view(narrow).astype(wide) * b.view(narrow).astype(wide)))
        return product if c is None else product + c

    return run


def _shift(name: str, letter: str, bits: int):
    """Shifts by more than the width give 0, or the sign for shr.s."""
    kind, limit = number_type(letter, bits), np.uint32(bits)

    def run(a, n):
        n = np.asarray(n)
        if name == "shr" and letter == "s":
            return as_bits(np.asarray(np.right_shift(a.view(kind), np.minimum(n, limit - 1).astype(kind))))
        shift = np.left_shift if name == "shl" else np.right_shift
        return np.where(n >= limit, a.dtype.type(0), shift(a, np.minimum(n, limit - 1).astype(a.dtype)))

    return run


def _funnel_shift(direction: str, mode: str):
    def run(a, b, n):
        n = (n & np.uint32(31)) if mode == "wrap" else np.minimum(n, np.uint32(32))
        both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
        n = np.asarray(n).astype(np.uint64)
        return ((both >> n) if direction == "r" else (both << n) >> np.uint64(32)).astype(np.uint32)

    return run


def _extract(letter: str, bits: int):
    """bfe: `length` bits from `start`; the sign bit is that at the field's end, or the operand's own beyond it."""
    kind = number_type(letter, bits)

    def run(a, start, length):
        start, length = (np.asarray(x & np.uint32(255)).astype(np.int64) for x in (start, length))
        value = a.view(kind).astype(object) if bits == 64 else a.view(kind).astype(np.int64)
        # Bits past the top are copies of the sign for s, zeros for u: what an arithmetic shift of the number gives.
        field = (value >> np.minimum(start, bits)) & ((1 << np.minimum(length, 62).astype(np.int64)) - 1)
        if letter == "s":
            top = np.int64(1) << np.maximum(np.minimum(length, 62) - 1, 0)
            field = np.where(
                length == 0, 0, np.where(length >= bits, value >> np.minimum(start, bits), (field ^ top) - top)
            )
        return as_bits(np.asarray(field).astype(np.int64).astype(kind))

    return run


def _insert(a, b, start, length):
    """bfi.b32: the low `length` bits of a into b at `start`."""
    start, length = (np.asarray(x & np.uint32(255)).astype(np.uint64) for x in (start, length))
    mask = ((np.uint64(1) << np.minimum(length, np.uint64(32))) - np.uint64(1)) << np.minimum(start, np.uint64(32))
    put = a.astype(np.uint64) << np.minimum(start, np.uint64(32))
    return ((put & mask) | (b.astype(np.uint64) & ~mask)).astype(np.uint32)


def _permute(a, b, selector):
    """prmt.b32, default mode: each nibble picks one of eight bytes, or its sign spread over the byte."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    out = np.uint32(0)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(np.uint32)
        if (nibble & np.uint32(8)).any():
            sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
            byte = np.where(nibble & np.uint32(8), sign, byte)
        out = out | (byte << np.uint32(8 * i))
    return out


def _lookup(a, b, c, table):
    """lop3.b32: the truth table's entry for each bit of the three operands."""
    table, out = int(np.asarray(table).reshape(-1)[0]), np.uint32(0)
    for i in range(8):
        if table >> i & 1:
            out = out | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return out


def _count_bits(a):
    return np.bitwise_count(a).astype(np.uint32)


def _leading_zeros(a):
    bits = 8 * a.dtype.itemsize
    return np.where(a == 0, bits, bits - np.frexp(_half_exact(a))[1]).astype(np.uint32)


def _half_exact(a):
    """A float64 with the same highest bit: all lower bits cleared, so that it is not rounded up."""
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < 8 * a.dtype.itemsize:
            a = a | (a >> a.dtype.type(shift))
    return (a ^ (a >> a.dtype.type(1))).astype(np.float64)


def _reverse(a):
    bytes_ = np.ascontiguousarray(np.atleast_1d(a)).view(np.uint8).reshape(-1, a.dtype.itemsize)
    flipped = np.packbits(np.unpackbits(bytes_, axis=1)[:, ::-1], axis=1).view(a.dtype).reshape(-1)
    return flipped if np.ndim(a) else flipped[0]


_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "not": np.bitwise_not}
_PREDICATES = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}
_COMPARE = {
    "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _compare_floats(name: str, kind, ftz: bool):
    """Ordered comparisons are false where an operand is NaN, ne too; those with a trailing u are true there."""
    unordered = name in ("equ", "neu", "ltu", "leu", "gtu", "geu")
    compare = None if name in ("num", "nan") else _COMPARE[name[:-1] if unordered else name]

    def run(a, b):
        x, y = decode(a, kind), decode(b, kind)
        if ftz:
            x, y = flush(x), flush(y)
        nan = (x != x) | (y != y)
        if compare is None:
            return nan if name == "nan" else ~nan
        return compare(x, y) | nan if unordered else compare(x, y) & ~nan

    return run


def comparison(name: str, kind: str, ftz: bool = False):
    """setp's test: (function of two bit patterns that gives bools, their width in bits)."""
    if kind in FORMATS:
        return _compare_floats(name, FORMATS[kind], ftz), 8 * np.dtype(FORMATS[kind].unsigned).itemsize
    letter, bits = kind[0], int(kind[1:])
    view, compare = number_type(letter, bits), _COMPARE[name]
    return (lambda a, b: compare(a.view(view), b.view(view))), bits


def find(opcode: str):
    """(function on bits, number of sources, bits of each source or a tuple of them) of an opcode, or None.

    Width 0 stands for a predicate."""
    parts = opcode.split(".")
    if found := re.fullmatch(
        r"(add|sub|mul\.lo|mul\.hi|min|max|abs|neg|div|rem|mad\.lo|mad\.hi)\.([su])(16|32|64)", opcode
    ):
        bits = int(found[3])
        count = 3 if found[1].startswith("mad") else 1 if found[1] in ("abs", "neg") else 2
        return _arithmetic(found[1], found[2], bits), count, bits
    if found := re.fullmatch(r"(mul|mad)\.wide\.([su])(16|32)", opcode):
        bits = int(found[3])
        widths = (bits, bits) if found[1] == "mul" else (bits, bits, 2 * bits)
        return _wide(*found.group(1, 2), bits), len(widths), widths
    if found := re.fullmatch(r"(and|or|xor|not)\.(?:b(16|32|64)|pred)", opcode):
        table = _LOGIC if found[2] else _PREDICATES
        return table[found[1]], 1 if found[1] == "not" else 2, int(found[2] or 0)
    if found := re.fullmatch(r"(shl|shr)\.([bsu])(16|32|64)", opcode):
        return _shift(found[1], found[2], int(found[3])), 2, (int(found[3]), 32)
    if found := re.fullmatch(r"shf\.([lr])\.(wrap|clamp)\.b32", opcode):
        return _funnel_shift(found[1], found[2]), 3, 32
    if found := re.fullmatch(r"bfe\.([su])(32|64)", opcode):
        return _extract(found[1], int(found[2])), 3, (int(found[2]), 32, 32)
    if found := re.fullmatch(r"selp\.[a-z]+(16|32|64)", opcode):
        return (lambda a, b, p: np.where(p, a, b)), 3, (int(found[1]), int(found[1]), 0)
    if found := re.fullmatch(r"(popc|clz|brev)\.b(32|64)", opcode):
        return {"popc": _count_bits, "clz": _leading_zeros, "brev": _reverse}[found[1]], 1, int(found[2])
    simple = {"prmt.b32": (_permute, 3), "lop3.b32": (_lookup, 4), "bfi.b32": (_insert, 4)}
    if opcode in simple:
        return (*simple[opcode], 32)
    if parts[0] == "setp" and len(parts) in (3, 4) and parts[1].rstrip("u") in (*_COMPARE, "num", "nan"):
        if len(parts) == 4 and parts[2] != "ftz":
            return None
        test, bits = comparison(parts[1], parts[-1], "ftz" in parts)
        return test, 2, bits
    return None

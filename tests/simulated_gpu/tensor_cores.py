"""ldmatrix, stmatrix and mma.sync: matrix fragments of a warp in registers.

Source: PTX ISA 8.7, 9.7.14.5 (mma fragments of m16n8k8, k16, k32), 9.7.14.5.15 (ldmatrix) and 9.7.14.5.16 (stmatrix).
Products are exact in float32 (8-bit and 16-bit operands), sums are float32 in the order of the host's BLAS: the
hardware's own rounding within one instruction is not emulated. int8 sums are exact.
"""

import re

import numpy as np

from .formats import BF16, E4M3, E5M2, F16, canonical, encode
from .formats import decode as decode_format
from .loads import address
from .parse import Instruction
from .registers import Slots

ELEMENT_BITS = {"s8": 8, "u8": 8, "e4m3": 8, "e5m2": 8, "f16": 16, "bf16": 16}
_FORMATS = {"e4m3": E4M3, "e5m2": E5M2, "f16": F16, "bf16": BF16}


def elements(words, kind: str):
    """Registers or memory words uint32 [..., n] as float32 values [..., n * elements in a word]."""
    words = np.ascontiguousarray(words)
    if kind in ("s8", "u8"):
        return words.view(np.int8 if kind == "s8" else np.uint8).astype(np.float32)
    return decode_format(words.view(_FORMATS[kind].unsigned), _FORMATS[kind])


def _warp_lanes(warps, count: int):
    """The first `count` lanes of each warp, in order."""
    return (warps[:, None] * 32 + np.arange(count)).reshape(-1)


def _load_matrix(i: Instruction, slots: Slots, guard):
    """ldmatrix .m8n8 .b16: lane 8n + r gives the address of row r of matrix n; lane (g, t) gets elements 2t, 2t+1 of
    row g."""
    if i.parts[3] != "m8n8":
        return None
    count, transposed = int(i.parts[4][1]), "trans" in i.parts
    where, targets = address(i.operands[1], slots), [slots.target(t) for t in i.operands[0]]

    def step(b):
        mask = b.active(*guard)
        warps = b.whole_warps(mask, "ldmatrix")
        rows = _warp_lanes(warps, 8 * count)
        if len(rows) == 0:
            return
        data = b.shared.load(b.warp[rows], where(b)[rows], 16, b.namer(rows))
        matrices = data.view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        words = matrices.view(np.uint32).reshape(-1, count, 32)
        lanes = slice(None) if mask is None else _warp_lanes(warps, 32)
        for n, slot in enumerate(targets):
            b.scatter(slot, lanes, np.ascontiguousarray(words[:, n]).reshape(-1))

    return step


def _store_matrix(i: Instruction, slots: Slots, guard):
    """stmatrix .m8n8 .b16: the reverse of ldmatrix."""
    if i.parts[3] != "m8n8":
        return None
    count, transposed = int(i.parts[4][1]), "trans" in i.parts
    where, reads = address(i.operands[0], slots), [slots.source(r, 32) for r in i.operands[1]]

    def step(b):
        warps = b.whole_warps(b.active(*guard), "stmatrix")
        rows, lanes = _warp_lanes(warps, 8 * count), _warp_lanes(warps, 32)
        if len(rows) == 0:
            return
        words = np.stack([b.full(b.r[read])[lanes].reshape(-1, 8, 4) for read in reads], axis=1)
        if transposed:
            halves = words.view(np.uint16).reshape(-1, count, 8, 8)
            words = np.ascontiguousarray(halves.swapaxes(2, 3)).view(np.uint32)
        data = np.ascontiguousarray(words).reshape(len(rows), 4).view(np.uint8)
        b.shared.store(b.warp[rows], where(b)[rows], data, b.namer(rows))

    return step


def fragment_a(words, kind: str, warps_high: int = 1):
    """Fragment A, uint32 [lanes, registers] -> float32 [warps, 16, k] (of 4 warps: [groups, 64, k]). Register: (k half,
    row half); lane (g, t): row g, elements t * n to t * n + n - 1 of the half."""
    per = 32 // ELEMENT_BITS[kind]
    halves = words.shape[1] // 2
    values = elements(words, kind).reshape(-1, warps_high, 8, 4, halves, 2, per)
    return values.transpose(0, 1, 5, 2, 4, 3, 6).reshape(-1, warps_high * 16, halves * 4 * per)


def fragment_b(words, kind: str):
    """Fragment B, uint32 [lanes, registers] -> float32 [warps, k, 8]. Register: k half; lane (g, t): column g."""
    per = 32 // ELEMENT_BITS[kind]
    values = elements(words, kind).reshape(-1, 8, 4, words.shape[1], per)
    return np.ascontiguousarray(values.transpose(0, 3, 2, 4, 1)).reshape(-1, words.shape[1] * 4 * per, 8)


def _operand(b, reads, kind: str, unpack):
    """An unpacked fragment, kept as long as its registers stay the same: many products share one."""
    arrays = [b.full(b.r[read]) for read in reads]
    key = (unpack, kind, *map(id, arrays))
    kept = b.fragments.get(key)
    if kept is None:
        if len(b.fragments) > 256:
            b.fragments.clear()
        kept = b.fragments[key] = (arrays, unpack(np.stack(arrays, axis=-1), kind))
    return kept[1]


_MMA = re.compile(
    r"mma\.sync\.aligned\.m16n8k(8|16|32)\.row\.col(\.satfinite)?\.(f32|f16|s32)\.(\w+)\.(\w+)\.(f32|f16|s32)"
)


def _multiply(i: Instruction, slots: Slots, guard):
    """mma.sync: D = A B + C with A [16, k], B [k, 8]."""
    found = _MMA.fullmatch(i.opcode)
    if found is None or {found[4], found[5]} - ELEMENT_BITS.keys() or found[3] != found[6]:
        return None
    k, clamp, result, kind_a, kind_b = int(found[1]), bool(found[2]), *found.group(3, 4, 5)
    if k * ELEMENT_BITS[kind_a] not in (128, 256):
        return None
    out, a, b_, c = i.operands
    targets = [slots.target(t) for t in out]
    a, b_, c = ([slots.source(x, 32) for x in group] for group in (a, b_, c))

    def step(b):
        mask = b.active(*guard)
        b.whole_warps(mask, "mma")
        product = _operand(b, a, kind_a, fragment_a) @ _operand(b, b_, kind_b, fragment_b)  # [warps, 16, 8]
        product = product.reshape(-1, 2, 8, 4, 2).transpose(1, 4, 0, 2, 3).reshape(4, b.lanes)
        for n, (target, read) in enumerate(zip(targets, c, strict=True)):
            old = b.full(b.r[read])
            if result == "f16":  # two columns in one register
                pair = np.stack([product[2 * n], product[2 * n + 1]], axis=-1)
                total = pair + decode_format(old.view(np.uint16).reshape(-1, 2), F16)
                new = np.ascontiguousarray(encode(total, F16)).view(np.uint32).reshape(-1)
            else:
                new = accumulate(product[n], old, result, clamp)
            b.put(target, new, mask)

    return step


def accumulate(product, old, result: str, clamp: bool):
    """product float32 plus the accumulator `old` in bits, as bits: float32, or int32 that saturates or wraps."""
    if result == "s32":
        total = product.astype(np.int64) + old.view(np.int32)
        if clamp:
            total = np.clip(total, -(2**31), 2**31 - 1)
        return total.astype(np.int32).view(np.uint32)
    return canonical(product + old.view(np.float32))


def decode(i: Instruction, slots: Slots, guard):
    """The step of an instruction of this file, or None."""
    table = {"ldmatrix": _load_matrix, "stmatrix": _store_matrix, "mma": _multiply}
    return table[i.parts[0]](i, slots, guard) if i.parts[0] in table else None

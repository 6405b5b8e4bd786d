"""wgmma: asynchronous products of a warp group (four warps), B and possibly A read from shared memory by descriptors.

Source: PTX ISA 8.7, 9.7.15 (wgmma; 9.7.15.5.1 matrix descriptor and swizzling, 9.7.15.6 and 9.7.15.7 fence, commit and
wait). The product is computed where it is issued; until the wait for its group the accumulators may not be read or
written, A's registers not be written, the operands in shared memory not be overwritten. Registers that other
instructions wrote need a wgmma.fence before.

The leading byte offset only matters for an operand that is stored along M or N and wider than the swizzle; its low
three bits are ignored, as results with Triton's descriptors show.
"""

import re
from dataclasses import dataclass

import numpy as np

from .faults import ReadBeforeWait
from .integers import UNSIGNED
from .parse import Address, Instruction
from .registers import Slots
from .tensor_cores import ELEMENT_BITS, accumulate, elements, fragment_a

GROUP = 128  # lanes
_PITCH = {1: 128, 2: 64, 3: 32}  # bytes, by the descriptor's swizzle mode


@dataclass
class _Product:
    """A wgmma in flight: its accumulators' and A's register slots, and what it reads of shared memory (words of each
    operand) by warp group, for the groups that have not waited for it yet."""

    accumulators: frozenset
    sources: frozenset
    reads: dict[int, list]


class ProductGroups:
    """The wgmma groups of a batch, by warp group: `open` since the last commit, and `committed`, oldest first. `dirty`
    are the slots written since the last wgmma.fence."""

    def __init__(self, groups: int):
        self.open: list[list[_Product]] = [[] for _ in range(groups)]
        self.committed: list[list] = [[] for _ in range(groups)]
        self.dirty: set = set()

    @staticmethod
    def of(b) -> "ProductGroups":
        """The batch's, made at its first use."""
        b.products = b.products or ProductGroups(b.lanes // GROUP)
        return b.products

    def in_flight(self):
        """Every product that some group has not waited for."""
        for queue, groups in zip(self.open, self.committed, strict=True):
            yield from queue
            for group in groups:
                yield from group

    def check(self, b, reads: frozenset, writes: frozenset, renames: bool) -> None:
        """Raises ReadBeforeWait if an instruction touches registers of a product in flight. One that `renames`, a mov
        between two registers, makes its target one of the product's: such copies stand at the ends of loops, and ptxas
        removes them."""
        groups = None
        for product in self.in_flight():
            touched = product.accumulators & (reads | writes) or product.sources & writes
            if not touched:
                continue
            if groups is None:
                groups = set(range(b.lanes // GROUP)) if b.mask is None else set(np.flatnonzero(b.mask) // GROUP)
            mine = groups & product.reads.keys()
            if mine and renames and not product.sources & writes:
                product.accumulators |= writes
            elif mine:
                thread = b.thread(min(mine) * GROUP)
                raise ReadBeforeWait("a register of a wgmma in flight is used before the wait for it", thread)

    def wait(self, b, group: int, keep: int) -> None:
        """Ends all but the `keep` newest committed groups of a warp group."""
        while len(self.committed[group]) > keep:
            for product in self.committed[group].pop(0):
                for words in product.reads.pop(group):
                    b.shared.end_matrix_read(words)


def watch(step, i: Instruction, slots: Slots):
    """`step` with the checks of registers in flight, for kernels that use wgmma."""
    if i.parts[0] == "wgmma":
        return step
    names = [_names(operand) for operand in i.operands]
    writes = frozenset() if i.parts[0] in ("st", "stmatrix", "bra", "bar", "red", "cp") or not names else names[0]
    reads = frozenset().union(*(names if not writes else names[1:]), [i.predicate] if i.predicate else [])
    renames = i.parts[0] == "mov" and all(isinstance(operand, str) for operand in i.operands)
    reads, writes = (frozenset(slots.target(name) for name in group) for group in (reads, writes))

    def watched(b):
        if b.products is not None:
            b.products.check(b, reads, writes, renames)
        step(b)
        ProductGroups.of(b).dirty |= writes

    return watched


def _names(operand) -> frozenset:
    """The registers in an operand."""
    if isinstance(operand, list):
        return frozenset().union(*map(_names, operand))
    if isinstance(operand, Address):
        return _names(operand.base)
    return frozenset([operand]) if isinstance(operand, str) and operand.startswith("%") else frozenset()


def read_matrix(b, descriptors, groups, rows: int, columns: int, size: int, across: bool):
    """The operand [rows, columns] of elements of `size` bytes that a descriptor of each warp group names: float-less
    words uint32 [groups, rows, columns * size / 4], and the token of the read. `across`: stored with consecutive rows
    together (M- or N-major)."""
    d = descriptors.astype(np.uint64)

    def bits(position, mask):
        return (((d >> np.uint64(position)) & np.uint64(mask)) << np.uint64(4)).astype(np.int64)[:, None, None]

    start, leading, stride = bits(0, 0x3FFF), bits(16, 0x3FF8), bits(32, 0x3FFF)
    pitch = _PITCH.get(int(d[0] >> np.uint64(62)))
    if pitch is None:
        raise NotImplementedError("a wgmma descriptor without swizzle")
    outer, inner = (columns, rows) if across else (rows, columns)
    r, chunk = np.arange(outer)[:, None], np.arange(inner * size // 16)[None, :] * 16
    place = start + (r // 8) * stride + (r % 8) * pitch + chunk % pitch + (chunk // pitch) * leading
    place ^= ((place >> 7) & (pitch // 16 - 1)) << 4
    data, token = b.shared.matrix_read(b.block[groups * GROUP], place, lambda k: b.thread(int(groups[0]) * GROUP))
    data = data.reshape(len(d), outer, inner * size)
    if across:
        data = np.ascontiguousarray(np.ascontiguousarray(data).view(UNSIGNED[8 * size]).swapaxes(1, 2)).view(np.uint8)
    return np.ascontiguousarray(data).view(np.uint32), token


_MMA = re.compile(r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k(\d+)\.(f32|s32)(?:\.satfinite)?\.(\w+)\.(\w+)")


def _multiply(i: Instruction, slots: Slots):
    """wgmma.mma_async: D [64, n] = A B (+ D where scale-d is true), A from registers or shared memory, B [n, k] from
    shared."""
    found = _MMA.fullmatch(i.opcode)
    if found is None or {found[4], found[5]} - ELEMENT_BITS.keys() or "satfinite" in i.opcode:
        return None
    n, k, result, kind_a, kind_b = int(found[1]), int(found[2]), *found.group(3, 4, 5)
    out, a, b_, keep, *rest = i.operands
    size = ELEMENT_BITS[kind_a] // 8
    signs, transposed = [x for x in rest[:2] if x != 1], rest[2:]
    if signs:
        return None  # negated operands
    across_b, across_a = bool(transposed and transposed[-1]), bool(len(transposed) == 2 and transposed[0])
    targets, from_registers = [slots.target(t) for t in out], isinstance(a, list)
    read_a = [slots.source(x, 32) for x in a] if from_registers else slots.source(a, 64)
    read_b, keep = slots.source(b_, 64), slots.source(keep, 0)
    sources = frozenset(read_a) if from_registers else frozenset()

    def step(b):
        groups, products = b.whole_warps(b.mask, "wgmma", GROUP), ProductGroups.of(b)
        if products.dirty & (sources | set(targets)):
            raise ReadBeforeWait(
                "a wgmma uses registers written after the last wgmma.fence", b.thread(int(groups[0]) * GROUP)
            )
        lanes = slice(None) if b.mask is None else (groups[:, None] * GROUP + np.arange(GROUP)).reshape(-1)
        tokens = []
        if from_registers:
            words = np.stack([b.full(b.r[read])[lanes] for read in read_a], axis=-1)
            left = fragment_a(words, kind_a, 4)
        else:
            words, token = read_matrix(b, b.full(b.r[read_a])[groups * GROUP], groups, 64, k, size, across_a)
            left = elements(words, kind_a)
            tokens.append(token)
        words, token = read_matrix(b, b.full(b.r[read_b])[groups * GROUP], groups, n, k, size, across_b)
        product = left @ elements(words, kind_b).swapaxes(1, 2)  # [groups, 64, n]
        # Lane (warp, g, t); register: (8 columns, row half, element)
        product = product.reshape(-1, 4, 2, 8, n // 8, 4, 2).transpose(4, 2, 6, 0, 1, 3, 5).reshape(n // 2, -1)
        add = b.full(b.r[keep])[lanes]
        for column, target in zip(product, targets, strict=True):
            old = np.where(add, b.full(b.r[target])[lanes], np.uint32(0))
            b.scatter(target, lanes, accumulate(column, old, result, False))
        reads = {int(group): [words[n] for words in (*tokens, token)] for n, group in enumerate(groups)}
        made = _Product(frozenset(targets), sources, reads)
        for group in groups:
            products.open[group].append(made)

    return step


def decode(i: Instruction, slots: Slots, guard):
    """The step of an instruction of this file, or None. Triton predicates none of them."""
    if i.parts[0] == "fence" and i.parts[1:3] == ["proxy", "async"]:
        return lambda b: b.shared.fence_async(b.whole_warps(b.mask, "fence.proxy.async"))
    if i.parts[0] != "wgmma" or guard[0] is not None:
        return None
    if i.parts[1] == "mma_async":
        return _multiply(i, slots)

    def fence(b):
        ProductGroups.of(b).dirty.clear()

    def commit(b):
        products = ProductGroups.of(b)
        for group in b.whole_warps(b.mask, "wgmma.commit_group", GROUP):
            products.committed[group].append(products.open[group])
            products.open[group] = []

    def wait(b):
        products = ProductGroups.of(b)
        for group in b.whole_warps(b.mask, "wgmma.wait_group", GROUP):
            products.wait(b, group, i.operands[0])

    return {"fence": fence, "commit_group": commit, "wait_group": wait}.get(i.parts[1])

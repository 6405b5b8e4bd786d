"""mov, ld, st, cp.async and atom: data between registers, parameters, global and shared memory.

Source: PTX ISA 8.7, 9.7.9 (data movement), 9.7.9.25.3 (cp.async), 9.7.13.4 and 9.7.13.7 (atom, red). Cache operators,
eviction priorities and cache policies change no result and are ignored.
"""

import re

import numpy as np

from .faults import OutOfBounds
from .integers import UNSIGNED, number_type
from .parse import Address, Instruction
from .registers import Slots


def _bits(kind: str) -> int:
    return int(re.sub(r"\D", "", kind))


def address(operand: Address, slots: Slots):
    """A function of the batch that gives the addresses int64 [lanes] of an address operand."""
    slot, offset = slots.source(operand.base, 64), operand.offset
    return lambda b: b.full(b.r[slot]).astype(np.int64) + offset


def _move(i: Instruction, slots: Slots, guard):
    """mov: between registers, or splitting and joining a vector of halves (lowest bits first)."""
    target, source = i.operands
    if isinstance(target, list):
        width = slots.bits(next(t for t in target if t != "_"))
        read, parts = slots.source(source, width * len(target)), [slots.target(t) for t in target]

        def split(b):
            value, mask = b.r[read], b.active(*guard)
            for n, slot in enumerate(parts):
                if slot is not None:
                    b.put(slot, (value >> value.dtype.type(width * n)).astype(UNSIGNED[width]), mask)

        return split
    to = slots.target(target)
    if isinstance(source, list):
        kind = UNSIGNED[slots.bits(target)]
        step = slots.bits(target) // len(source)
        reads = [slots.source(x, step) for x in source]

        def join(b):
            value = b.r[reads[0]].astype(kind)
            for n, read in enumerate(reads[1:], 1):
                value = value | (b.r[read].astype(kind) << kind(step * n))
            b.put(to, value, b.active(*guard))

        return join
    read = slots.source(source, slots.bits(target))
    return lambda b: b.put(to, b.r[read], b.active(*guard))


def _parameter(i: Instruction, slots: Slots, guard):
    """ld.param: a kernel argument, by the index at the end of its name."""
    target, (name, offset) = i.operands
    index, size = int(name.rsplit("_", 1)[1]), _bits(i.parts[-1]) // 8
    slot, kind = slots.target(target), UNSIGNED[slots.bits(target)]
    signed = i.parts[-1].startswith("s")

    def step(b):
        value = int.from_bytes(b.arguments[index][offset : offset + size], "little", signed=signed)
        b.put(slot, kind(value & (2 ** (8 * kind(0).itemsize) - 1)), b.active(*guard))

    return step


def _vector(i: Instruction, operand) -> tuple[list, int, str]:
    """(registers, bits of each, state space) of a ld or st."""
    space = next((p for p in i.parts if p in ("global", "shared")), "")
    values = operand if isinstance(operand, list) else [operand]
    return values, _bits(i.parts[-1]), space


def _load(i: Instruction, slots: Slots, guard):
    values, bits, space = _vector(i, i.operands[0])
    where, size = address(i.operands[1], slots), bits * len(values) // 8
    signed = i.parts[-1].startswith("s")
    targets = [(n, slots.target(v), UNSIGNED[slots.bits(v)]) for n, v in enumerate(values) if v != "_"]

    def step(b):
        mask = b.active(*guard)
        lanes = b.chosen(mask)
        place = where(b)[lanes]
        if len(place) == 0:
            return
        if space == "global":
            data = b.memory.load(place.view(np.uint64), size, b.namer(lanes))
        else:
            data = b.shared.load(b.warp[lanes], place, size, b.namer(lanes))
        data = np.ascontiguousarray(data).view(UNSIGNED[bits])
        for n, slot, kind in targets:
            column = data[:, n]
            if signed:
                column = column.view(number_type("s", bits)).astype(number_type("s", 8 * kind(0).itemsize))
            b.scatter(slot, lanes, column.astype(kind) if not signed else column.view(kind))

    return step if space else None


def _store(i: Instruction, slots: Slots, guard):
    values, bits, space = _vector(i, i.operands[1])
    where, kind = address(i.operands[0], slots), UNSIGNED[bits]
    reads = [slots.source(v, bits) for v in values]

    def step(b):
        lanes = b.chosen(b.active(*guard))
        place = where(b)[lanes]
        if len(place) == 0:
            return
        columns = [b.full(b.r[read])[lanes].astype(kind) for read in reads]
        data = (np.stack(columns, axis=1) if len(columns) > 1 else columns[0]).view(np.uint8).reshape(len(place), -1)
        if space == "global":
            b.memory.store(place.view(np.uint64), data, b.namer(lanes))
        else:
            b.shared.store(b.warp[lanes], place, data, b.namer(lanes))

    return step if space else None


class CopyGroups:
    """cp.async groups of each block of a batch: `open` since the last commit, and `committed`, oldest first. A thread
    waits for its own copies; blocks whose threads commit or wait apart are refused (as a divergent barrier)."""

    def __init__(self, blocks: int):
        self.open: list[list] = [[] for _ in range(blocks)]
        self.committed: list[list] = [[] for _ in range(blocks)]

    @staticmethod
    def of(b) -> "CopyGroups":
        """The batch's, made at its first use."""
        b.copies = b.copies or CopyGroups(b.blocks)
        return b.copies

    def commit(self, block: int) -> None:
        self.committed[block].append(self.open[block])
        self.open[block] = []

    def wait(self, b, block: int, keep: int) -> None:
        """Ends all but the `keep` newest groups: their bytes become visible."""
        while len(self.committed[block]) > keep:
            for token, data in self.committed[block].pop(0):
                b.shared.end_copy(token, data)

    def unfinished(self) -> bool:
        """Whether any copy was not waited for."""
        return any(self.open) or any(group for block in self.committed for group in block)


def _copy_groups(i: Instruction, guard):
    """cp.async.commit_group, wait_group, wait_all."""
    name, keep = i.parts[2], i.operands[0] if i.operands else 0

    def step(b):
        groups = CopyGroups.of(b)
        for block in b.whole_warps(b.active(*guard), f"cp.async.{name}", b.threads):
            if name != "wait_group":
                groups.commit(block)
            if name != "commit_group":
                groups.wait(b, block, keep)

    return step


def _copy(i: Instruction, slots: Slots, guard):
    """cp.async: reads global memory now, writes shared memory at the wait; bytes past src-size are zeros."""
    if i.parts[2] in ("commit_group", "wait_group", "wait_all"):
        return _copy_groups(i, guard)
    if i.parts[2] not in ("ca", "cg"):
        return None
    to, of, size = address(i.operands[0], slots), address(i.operands[1], slots), i.operands[2]
    given = slots.source(i.operands[3], 32) if len(i.operands) > 3 else slots.source(size, 32)

    def step(b):
        lanes = b.chosen(b.active(*guard))
        place, origin = to(b)[lanes], of(b)[lanes].view(np.uint64)
        if len(place) == 0:
            return
        count = b.full(b.r[given])[lanes]
        thread, data = b.namer(lanes), np.zeros((len(place), size), np.uint8)
        if (count > size).any():
            lane = int(np.argmax(count))
            raise OutOfBounds(
                f"cp.async reads {count[lane]} bytes of a copy of {size}", thread(lane), int(origin[lane])
            )
        for n in np.unique(count):
            if n:
                some = np.flatnonzero(count == n)
                unit = size if n == size else int(n & -n)
                for start in range(0, int(n), unit):
                    part = b.memory.load(origin[some] + np.uint64(start), unit, lambda k, some=some: thread(some[k]))
                    data[some, start : start + unit] = part
        groups, block = CopyGroups.of(b), b.block[lanes]
        for c in np.unique(block):
            mine = np.flatnonzero(block == c)
            token = b.shared.begin_copy(b.warp[lanes][mine], place[mine], size, lambda k, mine=mine: thread(mine[k]))
            groups.open[c].append((token, data[mine]))

    return step


_ATOMIC = {
    "add": lambda old, x: old + x, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "exch": lambda old, x: x, "cas": lambda old, x, y: np.where(old == x, y, old),
}  # fmt: skip


def _atomic(i: Instruction, slots: Slots, guard):
    """atom, red on global memory, one lane after the other."""
    returns, parts = i.parts[0] == "atom", i.parts
    name, kind = next(p for p in parts[1:] if p in _ATOMIC), parts[-1]
    if "global" not in parts or kind[0] not in "busf" or kind.endswith("x2") or kind == "f16":
        return None
    bits = _bits(kind)
    number = {"f32": np.float32, "f64": np.float64}.get(kind) or number_type(kind[0], bits)
    operands = i.operands[1:] if returns else i.operands
    where, reads = address(operands[0], slots), [slots.source(x, bits) for x in operands[1:]]
    target = slots.target(i.operands[0]) if returns else None

    def step(b):
        lanes = np.arange(b.lanes)[b.chosen(b.active(*guard))]
        place = where(b).view(np.uint64)
        values = [b.full(b.r[read]) for read in reads]
        for lane in lanes:
            here = place[lane : lane + 1]
            old = b.memory.load(here, bits // 8, lambda _, lane=lane: b.thread(lane)).view(number).reshape(-1)
            new = np.asarray(_ATOMIC[name](old, *[v[lane : lane + 1].view(number) for v in values])).astype(number)
            b.memory.store(here, new.view(np.uint8).reshape(1, -1), b.thread)
            if target is not None:
                b.scatter(target, [lane], old.view(UNSIGNED[bits]))

    return step


def decode(i: Instruction, slots: Slots, guard):
    """The step of an instruction of this file, or None. `guard` is its predicate's slot and whether it is negated."""
    name, space = i.parts[0], i.parts[1] if len(i.parts) > 1 else ""
    if name == "mov":
        return _move(i, slots, guard)
    if name == "ld":
        return _parameter(i, slots, guard) if space == "param" else _load(i, slots, guard)
    if name == "st":
        return _store(i, slots, guard)
    if name == "cp" and space == "async":
        return _copy(i, slots, guard)
    if name in ("atom", "red"):
        return _atomic(i, slots, guard)
    return None

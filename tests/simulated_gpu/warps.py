"""Instructions across the lanes of a warp, and barriers: shfl, vote, match, redux, activemask, bar.

Source: PTX ISA 8.7, 9.7.9.6 (shfl.sync), 9.7.13.1 to 9.7.13.3 (bar, barrier), 9.7.13.9 to 9.7.13.12 (vote, match,
activemask, redux). The lanes that a member mask names must all take part, else the fault is a divergent barrier.
"""

import numpy as np

from .batch import WARP
from .faults import DivergentBarrier
from .integers import as_bits, number_type
from .parse import Instruction
from .registers import Slots


def _check_members(b, members, mask, what: str) -> None:
    """Every lane named by an active lane's member mask runs the instruction too."""
    active = np.ones(b.lanes, bool) if mask is None else mask
    running = active.reshape(-1, WARP)
    if np.ndim(members) == 0 and int(members) == 0xFFFFFFFF:
        b.whole_warps(mask, what)
        return
    ballot = (running.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
    missing = b.full(members) & ~np.repeat(ballot, WARP)
    if (bad := active & (missing != 0)).any():
        raise DivergentBarrier(f"{what}: not all lanes of its member mask take part", b.thread(int(np.argmax(bad))))


def _shuffle(i: Instruction, slots: Slots, guard):
    """shfl.sync: the source lane is computed within the segment that the clamp operand describes; beyond it the lane
    keeps its own value and the optional predicate is false."""
    mode, (target, _, valid) = i.parts[2], i.operands[0].partition("|")
    to, ok = slots.target(target), slots.target(valid) if valid else None
    source, offset, clamp, members = (slots.source(x, 32) for x in i.operands[1:5])

    def step(b):
        mask, lane = b.active(*guard), np.arange(b.lanes)
        _check_members(b, b.r[members], mask, "shfl.sync")
        amount, c = np.asarray(b.r[offset]).astype(np.int64) & 31, np.asarray(b.r[clamp]).astype(np.int64)
        within, segment = lane & 31, (c >> 8) & 31
        low = within & segment
        high = low | (c & 31 & ~segment)
        if mode == "up":
            j = within - amount
            inside = j >= high
        else:
            j = {"bfly": within ^ amount, "down": within + amount, "idx": low | (amount & ~segment)}[mode]
            inside = j <= high
        origin = np.where(inside, (lane & ~31) + j, lane)
        if mask is not None and not mask[origin][mask].all():
            raise DivergentBarrier(
                "shfl reads a lane that does not take part", b.thread(int(np.argmax(mask & ~mask[origin])))
            )
        b.put(to, b.full(b.r[source])[origin], mask)
        if ok is not None:
            b.put(ok, np.broadcast_to(inside, (b.lanes,)), mask)

    return step


def _vote(i: Instruction, slots: Slots, guard):
    """vote.sync: all, any, uni of a predicate over the members, or their ballot."""
    mode, negated = i.parts[2], isinstance(i.operands[1], str) and i.operands[1].startswith("!")
    to = slots.target(i.operands[0])
    source = slots.source(i.operands[1].lstrip("!") if isinstance(i.operands[1], str) else i.operands[1], 0)
    members = slots.source(i.operands[2], 32)

    def step(b):
        mask = b.active(*guard)
        _check_members(b, b.r[members], mask, "vote.sync")
        taking = np.ones(b.lanes, bool) if mask is None else mask
        p = b.full(b.r[source]) ^ negated
        rows, yes = taking.reshape(-1, WARP), (p & taking).reshape(-1, WARP)
        if mode == "ballot":
            out = (yes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
        else:
            every, some = (yes | ~rows).all(1), yes.any(1)
            out = {"all": every, "any": some, "uni": every | ~some}[mode]
        b.put(to, np.repeat(out, WARP), mask)

    return step


def _match(i: Instruction, slots: Slots, guard):
    """match.any: the lanes with the same value; match.all: all members if they agree, else none, and a predicate."""
    mode, bits = i.parts[1], int(i.parts[-1][1:])
    target, _, agree = i.operands[0].partition("|")
    to, ok = slots.target(target), slots.target(agree) if agree else None
    source, members = slots.source(i.operands[1], bits), slots.source(i.operands[2], 32)

    def step(b):
        mask = b.active(*guard)
        _check_members(b, b.r[members], mask, "match.sync")
        taking = (np.ones(b.lanes, bool) if mask is None else mask).reshape(-1, WARP)
        x = b.full(b.r[source]).reshape(-1, WARP)
        same = (x[:, :, None] == x[:, None, :]) & taking[:, None, :]
        out = (same.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(2).astype(np.uint32)
        if mode == "all":
            every = (same | ~taking[:, None, :]).all(2)
            out = np.where(every, out, np.uint32(0))
            if ok is not None:
                b.put(ok, every.reshape(-1), mask)
        b.put(to, out.reshape(-1), mask)

    return step


def _reduce(i: Instruction, slots: Slots, guard):
    """redux.sync: add, min, max, and, or, xor over a whole warp."""
    name, kind = i.parts[2], number_type(i.parts[-1][0], 32)
    if i.parts[-1] not in ("u32", "s32", "b32"):
        return None
    reduce = {
        "max": np.maximum, "min": np.minimum, "add": np.add, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[name].reduce  # fmt: skip
    to, source, members = slots.target(i.operands[0]), *(slots.source(x, 32) for x in i.operands[1:3])

    def step(b):
        mask = b.active(*guard)
        _check_members(b, b.r[members], mask, "redux.sync")
        out = reduce(b.full(b.r[source]).view(kind).reshape(-1, WARP), axis=1, dtype=kind)
        b.put(to, as_bits(np.repeat(out, WARP)), mask)

    return step


def _active_mask(i: Instruction, slots: Slots, guard):
    to = slots.target(i.operands[0])

    def step(b):
        mask = b.active(*guard)
        rows = (np.ones(b.lanes, bool) if mask is None else mask).reshape(-1, WARP)
        out = (rows.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
        b.put(to, np.repeat(out, WARP), mask)

    return step


def _barrier(i: Instruction, slots: Slots, guard):
    """bar.sync 0: all threads of a block; bar.warp.sync: a warp. Named barriers and those of some warps are not
    there."""
    if i.parts[1] == "warp":
        members = slots.source(i.operands[0], 32)
        return lambda b: _check_members(b, b.r[members], b.active(*guard), "bar.warp.sync")
    if i.operands != [0]:
        return None

    def step(b):
        blocks = b.whole_warps(b.active(*guard), "a barrier that not all threads of the block reach", b.threads)
        passing = np.zeros(b.blocks, np.int32)
        passing[blocks] = 1
        b.shared.barrier(passing)

    return step


def decode(i: Instruction, slots: Slots, guard):
    """The step of an instruction of this file, or None."""
    table = {
        "shfl": _shuffle, "vote": _vote, "match": _match, "redux": _reduce, "activemask": _active_mask,
        "bar": _barrier, "barrier": _barrier,
    }  # fmt: skip
    return table[i.parts[0]](i, slots, guard) if i.parts[0] in table else None

"""A few blocks that run together: their lanes, registers, shared memory, and which lanes take part in an instruction.

All threads of all blocks of a batch are lanes of numpy arrays and run in lockstep; where they diverge, the basic block
that comes first in the program runs first, so that lanes meet again where the program does.
"""

import numpy as np

from .faults import DivergentBarrier
from .memory import GlobalMemory
from .shared import SharedMemory

WARP = 32


class Batch:
    """State of a batch. `mask` bool [lanes] says which lanes run the current basic block, None means all; `r` are the
    register slots (registers.py); `jump` is the mask and the target of a branch that not all lanes took, `next` the
    following block."""

    def __init__(
        self, r: list, grid: tuple[int, int, int], blocks: np.ndarray, threads: int, memory: GlobalMemory, shared: int
    ):
        self.r, self.grid, self.threads, self.memory = r, grid, threads, memory
        self.blocks, self.lanes = len(blocks), len(blocks) * threads
        self.warps = self.lanes // WARP
        self._first = int(blocks[0])
        lane = np.arange(self.lanes)
        self.block = lane // threads  # of a lane, in the batch
        self.warp = (lane // WARP).astype(np.int32)
        self.shared = SharedMemory(self.blocks, threads // WARP, shared)
        self.mask: np.ndarray | None = None
        self.next, self.jump = 0, None
        self.copies = None  # cp.async groups, made by the first (copies.py)
        self.products = None  # wgmma groups, made by the first (wgmma.py)
        self.fragments: dict = {}  # unpacked mma operands by the identity of their registers

    def active(self, predicate: int | None, negated: bool):
        """The lanes an instruction runs in, given its predicate's slot: a mask, None for all."""
        if predicate is None:
            return self.mask
        p = self.r[predicate]
        if np.ndim(p) == 0:
            if bool(p) != negated:
                return self.mask
            return np.zeros(self.lanes, bool)
        p = ~p if negated else p
        p = p if self.mask is None else p & self.mask
        return None if p.all() else p

    def full(self, value):
        """A value for every lane."""
        return np.full(self.lanes, value) if np.ndim(value) == 0 else value

    def put(self, slot: int, value, mask) -> None:
        """Writes a register in the lanes of `mask`."""
        self.r[slot] = value if mask is None else np.where(mask, value, self.r[slot])

    def scatter(self, slot: int, lanes, values) -> None:
        """Writes a register in the lanes of these numbers (or in all: a slice)."""
        if isinstance(lanes, slice):
            self.r[slot] = values
            return
        new = np.array(self.full(self.r[slot]))
        new[lanes] = values
        self.r[slot] = new

    def chosen(self, mask):
        """The numbers of a mask's lanes, a slice for all."""
        return slice(None) if mask is None else np.flatnonzero(mask)

    def whole_warps(self, mask, what: str, width: int = WARP):
        """The numbers of the warps (groups of `width` lanes) that run an instruction which all their lanes must reach.

        Raises DivergentBarrier if some lanes of one do not."""
        if mask is None:
            return np.arange(self.lanes // width)
        warps = mask.reshape(-1, width)
        some = warps.any(1)
        if (broken := some & ~warps.all(1)).any():
            missing = int(np.flatnonzero(broken)[0]) * width
            missing += int(np.flatnonzero(~mask[missing : missing + width])[0])
            raise DivergentBarrier(f"{what}: some of its threads do not take part", self.thread(missing))
        return np.flatnonzero(some)

    def thread(self, lane: int) -> str:
        """A lane as the programmer knows it."""
        x, y, _ = self.grid
        block, thread = divmod(int(lane), self.threads)
        block += self._first
        return f"block ({block % x}, {block // x % y}, {block // (x * y)}) thread {thread}"

    def namer(self, lanes):
        """`thread` for positions in a list of lanes."""
        return self.thread if isinstance(lanes, slice) else lambda i: self.thread(lanes[i])

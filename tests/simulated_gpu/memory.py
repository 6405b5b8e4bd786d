"""Global memory of a launch: the allocations a kernel may touch, on the host's own memory.

Checks of compute-sanitizer's memcheck and initcheck: an access must lie within one allocation, be aligned to its size
(PTX ISA 8.7, 6.4.1.1), and a read byte must have been written where the allocation tracks that.
"""

import ctypes
from dataclasses import dataclass

import numpy as np

from .faults import Misaligned, OutOfBounds, UninitializedRead

# The dtype that moves so many bytes at once, unchanged.
UNIT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
_ALIGNMENT = 16  # of the array over an allocation; a partial unit at either end never crosses a page


@dataclass
class Allocation:
    """`size` bytes from `address` that may be touched. `written`: uint8 [size], 255 for bytes that hold a value, 0 for
    others; None if all do. Stores set it."""

    address: int
    size: int
    name: str
    written: np.ndarray | None = None

    def __post_init__(self):
        self.start = self.address // _ALIGNMENT * _ALIGNMENT
        length = -(-(self.address + self.size - self.start) // _ALIGNMENT) * _ALIGNMENT
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(self.start))
        self.units = {size: raw.view(unit) for size, unit in UNIT.items()}
        if self.written is not None:
            shadow = np.zeros(length, np.uint8)
            self._inside = slice(self.address - self.start, self.address - self.start + self.size)
            shadow[self._inside] = self.written
            self.shadow = {size: shadow.view(unit) for size, unit in UNIT.items()}

    def close(self) -> None:
        """Copies back which bytes the kernel wrote."""
        if self.written is not None:
            self.written[:] = self.shadow[1][self._inside]

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size


class GlobalMemory:
    """The allocations of a launch; overlapping ones (views of one tensor) count as one."""

    def __init__(self, allocations: list[Allocation]):
        merged: list[Allocation] = []
        for a in sorted((a for a in allocations if a.size), key=lambda a: (a.address, -a.size)):
            if not merged or a.address >= merged[-1].end:
                merged.append(a)
            elif a.end > merged[-1].end or a.name not in merged[-1].name:
                merged[-1] = _union(merged[-1], a)
        self._allocations = merged
        self._starts = np.array([a.address for a in merged], np.uint64)

    def close(self) -> None:
        """Ends the launch: see `Allocation.close`."""
        for allocation in self._allocations:
            allocation.close()

    def _locate(self, addresses, size: int, thread):
        """Yields (allocation, lanes, indices of units) that cover all addresses [n]; `thread` names a lane by its
        index."""
        if (bad := addresses & np.uint64(size - 1)).any():
            lane = int(np.flatnonzero(bad)[0])
            raise Misaligned(f"an access of {size} bytes is not aligned to them", thread(lane), int(addresses[lane]))
        low, high = int(addresses.min()), int(addresses.max())
        place = int(np.searchsorted(self._starts, np.uint64(low), side="right")) - 1
        if place >= 0 and high + size <= self._allocations[place].end:
            allocation = self._allocations[place]
            yield allocation, slice(None), (addresses - np.uint64(allocation.start)).view(np.int64) // size
            return
        places = np.searchsorted(self._starts, addresses, side="right").astype(np.int64) - 1
        for i in np.unique(places):
            lanes = np.flatnonzero(places == i)
            given = addresses[lanes]
            worst = int(np.argmax(given))
            if i < 0:
                raise OutOfBounds("the address is below every allocation", thread(int(lanes[0])), int(given[0]))
            allocation = self._allocations[i]
            if int(given[worst]) + size > allocation.end:
                beyond = int(given[worst]) + size - allocation.end
                text = f"{beyond} bytes beyond the end of {allocation.name} ({allocation.size} bytes)"
                raise OutOfBounds(text, thread(int(lanes[worst])), int(given[worst]))
            yield allocation, lanes, (given - np.uint64(allocation.start)).view(np.int64) // size

    def load(self, addresses, size: int, thread):
        """The bytes at addresses uint64 [n]: uint8 [n, size]."""
        out = np.empty(len(addresses), UNIT[size])
        for allocation, lanes, index in self._locate(addresses, size, thread):
            out[lanes] = allocation.units[size][index]
            if allocation.written is not None:
                known = np.ascontiguousarray(allocation.shadow[size][index]).view(np.uint8)
                if not known.all():
                    lane = int(np.flatnonzero(known.reshape(-1, size).min(1) == 0)[0])
                    lane = lane if isinstance(lanes, slice) else int(lanes[lane])
                    raise UninitializedRead(
                        f"{allocation.name} is read where nothing was written", thread(lane), int(addresses[lane])
                    )
        return out.view(np.uint8).reshape(-1, size)

    def store(self, addresses, data, thread) -> None:
        """Writes data uint8 [n, size] to addresses uint64 [n]."""
        size = data.shape[1]
        values = np.ascontiguousarray(data).view(UNIT[size]).reshape(-1)
        for allocation, lanes, index in self._locate(addresses, size, thread):
            allocation.units[size][index] = values[lanes]
            if allocation.written is not None:
                allocation.shadow[size][index] = _ALL_WRITTEN[size]


_ALL_WRITTEN = {size: np.full(size, 255, np.uint8).view(unit)[0] for size, unit in UNIT.items()}


def _union(a: Allocation, b: Allocation) -> Allocation:
    """One allocation over both; bytes that only one tracks count as written."""
    start, end = min(a.address, b.address), max(a.end, b.end)
    written = None
    if a.written is not None and b.written is not None and (a.address, a.size) == (b.address, b.size):
        written = a.written
    return Allocation(start, end - start, f"{a.name}+{b.name}", written)

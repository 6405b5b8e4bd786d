"""Shared memory of the blocks that run together, and copies into it that are in flight.

Checks of compute-sanitizer's racecheck, memcheck and initcheck, by 32-bit word:
- two warps of a block that touch a word in one interval between barriers, one of them writing (PTX ISA 8.7, 8.9: no
  order);
- a word that a `cp.async` in flight will write, or a `wgmma` in flight reads (9.7.9.25.3, 9.7.15.6: undefined before
  the wait);
- reading a byte that nothing has written; two lanes of one store that disagree about a word.

A word written by several warps with the same bits in one interval is no race: Triton stores replicated values so.

A cp.async that overwrites operands of a wgmma in flight is noted in `hazards` instead of raised: Triton 3.6 compiles
such loops for 9.0 (it splits a product whose A is in registers and waits for the first part alone), and the copy's
latency hides it on a GPU.
"""

import numpy as np

from .faults import Misaligned, OutOfBounds, ReadBeforeWait, SharedRace, UninitializedRead
from .memory import UNIT

_SEVERAL = -2  # warps


class SharedMemory:
    """The shared memory of `blocks` blocks of `warps` warps, `size` bytes each; addresses are a block's own, from 0."""

    def __init__(self, blocks: int, warps: int, size: int):
        self.size = -(-size // 16) * 16
        self._warps = warps
        total, words = blocks * self.size, blocks * self.size // 4
        data = np.full(total, 0xFF, np.uint8)
        self._data = {n: data.view(unit) for n, unit in UNIT.items()}
        self._written = np.zeros(total, np.uint8)  # 255: holds a value
        # Of each word: who wrote and who read it last (warp of the batch, or several) and in which interval between
        # barriers.
        self._writer, self._reader = np.full(words, -1, np.int32), np.full(words, -1, np.int32)
        self._write_interval, self._read_interval = np.full(words, -1, np.int32), np.full(words, -1, np.int32)
        self._copies = np.zeros(words, np.int16)  # in flight to it
        self._matrix_reads = np.zeros(words, np.int16)  # by wgmma in flight
        self._interval = np.zeros(blocks, np.int32)
        # A store by the generic proxy is seen by the async proxy (wgmma) once its warp has passed a fence.proxy.async.
        # Copies by cp.async are exempt: Triton, like CUTLASS, waits for them and fences nothing.
        self.hazards: list[str] = []
        self._stores = 0
        self._write_time = np.zeros(words, np.int64)
        self._fence_time = np.zeros(blocks * warps, np.int64)

    def barrier(self, blocks) -> None:
        """The blocks (bool [blocks]) pass a barrier: what was touched before is ordered before what comes."""
        self._interval += blocks

    def fence_async(self, warps) -> None:
        """fence.proxy.async by the warps (bool [blocks * warps])."""
        self._fence_time[warps] = self._stores

    def _words(self, warp, place, size: int, thread):
        """Indices of the words [n, size / 4] that lanes of the given warps [n] touch at int64 addresses [n]."""
        if (bad := place & (size - 1)).any():
            lane = int(np.flatnonzero(bad)[0])
            raise Misaligned(f"a shared access of {size} bytes is not aligned to them", thread(lane), int(place[lane]))
        if int(place.min()) < 0 or int(place.max()) + size > self.size:
            lane = int(np.flatnonzero((place < 0) | (place + size > self.size))[0])
            raise OutOfBounds(f"the block has {self.size} bytes of shared memory", thread(lane), int(place[lane]))
        start = warp // self._warps * self.size + place
        if size <= 4:
            return start, (start >> 2)[:, None]
        return start, (start >> 2)[:, None] + np.arange(size // 4)

    @staticmethod
    def _report(kind, problem, bad, place, thread):
        lane = int(np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim))))[0])
        raise kind(problem, thread(lane), int(place[lane]))

    def load(self, warp, place, size: int, thread):
        """The bytes at addresses int64 [n] read by warps [n]: uint8 [n, size]."""
        start, words = self._words(warp, place, size, thread)
        unit = start // size
        interval = self._interval[warp // self._warps][:, None]
        by = warp[:, None]
        if (flying := self._copies[words]).any():
            self._report(
                ReadBeforeWait, "shared memory is read while a cp.async to it is in flight", flying, place, thread
            )
        race = (self._write_interval[words] == interval) & (self._writer[words] != by)
        if race.any():
            text = "shared memory that another warp wrote is read without a barrier between"
            self._report(SharedRace, text, race, place, thread)
        known = self._written.view(UNIT[size])[unit].view(np.uint8).reshape(-1, size)
        if not known.all():
            text = "shared memory is read where nothing was written"
            self._report(UninitializedRead, text, known == 0, place, thread)
        others = (self._read_interval[words] == interval) & (self._reader[words] != by)
        self._note_reads(words, np.where(others, _SEVERAL, by), interval)
        return self._data[size][unit].view(np.uint8).reshape(-1, size)

    def _note_reads(self, words, readers, interval) -> None:
        self._read_interval[words] = interval
        self._reader[words] = readers
        mixed = self._reader[words] != readers  # warps that read one word in this very instruction
        if mixed.any():
            self._reader[words[mixed]] = _SEVERAL

    def _check_write(self, by, words, interval, data, place, thread) -> None:
        if (flying := self._copies[words]).any():
            text = "shared memory is written while a cp.async to it is in flight"
            self._report(ReadBeforeWait, text, flying, place, thread)
        if (reads := self._matrix_reads[words]).any():
            text = "shared memory is written while a wgmma that reads it is in flight"
            if data is not None:
                self._report(ReadBeforeWait, text, reads, place, thread)
            self.hazards.append(text.replace("written", "overwritten by a cp.async"))
        race = (self._read_interval[words] == interval) & (self._reader[words] != by)
        if race.any():
            text = "shared memory that another warp reads is written without a barrier between"
            self._report(SharedRace, text, race, place, thread)
        race = (self._write_interval[words] == interval) & (self._writer[words] != by)
        if race.any():
            different = True if data is None else self._data[4][words] != data
            if (race & different).any():
                text = "shared memory is written by two warps without a barrier between"
                self._report(SharedRace, text, race & different, place, thread)

    def store(self, warp, place, data, thread) -> None:
        """Writes data uint8 [n, size] to addresses int64 [n] by warps [n]."""
        size = data.shape[1]
        start, words = self._words(warp, place, size, thread)
        interval, by = self._interval[warp // self._warps][:, None], warp[:, None]
        values = np.ascontiguousarray(data).view(UNIT[size]).reshape(-1)
        wide = values.view(np.uint32).reshape(words.shape) if size >= 4 else None
        # Warps that write different bytes of one word are no race, and not told apart from those that write the same
        # byte.
        self._check_write(by, words, interval, self._data[4][words] if wide is None else wide, place, thread)
        self._data[size][start // size] = values
        if wide is not None and (lost := self._data[4][words] != wide).any():
            self._report(SharedRace, "two lanes of one store write different values to one word", lost, place, thread)
        self._written.view(UNIT[size])[start // size] = _WRITTEN[size]
        self._note_write(words, by, interval)

    def _note_write(self, words, by, interval) -> None:
        self._stores += 1
        self._writer[words] = by
        self._write_interval[words] = interval
        self._write_time[words] = self._stores

    def begin_copy(self, warp, place, size: int, thread):
        """A cp.async of `size` bytes to addresses [n] by warps [n] starts. Returns the token for `end_copy`."""
        start, words = self._words(warp, place, size, thread)
        interval, by = self._interval[warp // self._warps][:, None], warp[:, None]
        self._check_write(by, words, interval, None, place, thread)
        self._copies[words] += 1
        return warp, start, words, size

    def end_copy(self, token, data) -> None:
        """The wait for a copy: its bytes are there, for the warp that waited; for others after a barrier."""
        warp, start, words, size = token
        self._copies[words] -= 1
        self._data[size][start // size] = np.ascontiguousarray(data).view(UNIT[size]).reshape(-1)
        self._written.view(UNIT[size])[start // size] = _WRITTEN[size]
        self._note_write(words, warp[:, None], self._interval[warp // self._warps][:, None])
        self._write_time[words] = 0

    def matrix_read(self, block, place, thread):
        """Rows of 16 bytes at addresses int64 [g, ...] that wgmma of warp groups in blocks [g] reads by the async
        proxy: uint8 [g, ..., 16], and the words int64 [g, ...] for `end_matrix_read`, group by group."""
        if int(place.min()) < 0 or int(place.max()) + 16 > self.size:
            raise OutOfBounds(
                f"a matrix descriptor reaches beyond the block's {self.size} bytes", thread(0), int(place.max())
            )
        shape = (-1,) + (1,) * place.ndim
        start = (block * self.size).reshape(shape[:-1]) + place
        words = (start >> 2)[..., None] + np.arange(4)
        if self._copies[words].any():
            raise ReadBeforeWait("wgmma reads shared memory while a cp.async to it is in flight", thread(0))
        interval = self._interval[block].reshape(shape)
        if (self._write_interval[words] == interval).any():
            raise SharedRace("wgmma reads shared memory that was written after the last barrier", thread(0))
        if not self._written.view(np.uint32)[words].all():
            raise UninitializedRead("wgmma reads shared memory where nothing was written", thread(0))
        if (self._write_time[words] > self._fence_time[self._writer[words]]).any():
            raise SharedRace("wgmma reads shared memory whose writer passed no fence.proxy.async", thread(0))
        for nth in range(int(np.bincount(block).max())):  # groups of one block read the same words, and each counts
            of_block = np.array([nth == np.count_nonzero(block[:g] == block[g]) for g in range(len(block))])
            self._matrix_reads[words[of_block]] += 1
        self._note_reads(words, np.full(words.shape, _SEVERAL, np.int32), np.broadcast_to(interval, words.shape))
        return self._data[16][start // 16].view(np.uint8).reshape(*place.shape, 16), words

    def end_matrix_read(self, words) -> None:
        """A warp group's wait for a wgmma that read these words."""
        self._matrix_reads[words] -= 1


_WRITTEN = {size: np.full(size, 255, np.uint8).view(unit)[0] for size, unit in UNIT.items()}

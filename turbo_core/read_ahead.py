"""Reading a model file before it is needed: from the disk into the operating system's page cache, on a thread of its
own.

Weights are mapped from their file, so a file that is in the page cache is as good as loaded: ComfyUI then copies it to
the device, or a CPU computes from it, at the speed of memory. Only one buffer is held here; the system drops the cached
pages when something else needs the memory."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import psutil

logger = logging.getLogger("turbodiffusion")

HEADROOM = 2 << 30  # bytes of memory that reading ahead leaves to everything else
_CHUNK = 4 << 20  # bytes; stopping waits for one read of this size


def room(size: int, in_use: int, headroom: int = HEADROOM) -> int:
    """How many of a file's `size` bytes the page cache can take now beside `in_use` bytes of files that must stay in
    it."""
    return max(0, min(size, psutil.virtual_memory().available - in_use - headroom))


@dataclass
class Reading:
    """What was read ahead of a file: its size, the bytes wanted and read, seconds of `time.perf_counter` (None while it
    has not happened), and why it read less than it wanted."""

    name: str
    size: int
    wanted: int
    read: int = 0
    began: float | None = None
    ended: float | None = None
    cut: str = ""


class ReadAhead:
    """Reads up to `limit` bytes of a checkpoint's files in their order, beginning now, until `stop` or while more than
    `headroom` bytes of memory are available. A file that cannot be read is not an error here: loading it reports it."""

    def __init__(self, files: Sequence[Path], limit: int, headroom: int = HEADROOM):
        self.reading = Reading(files[0].name, total_size(files), limit)
        self._files, self._headroom, self._stopped = files, headroom, threading.Event()
        self._thread = threading.Thread(target=self._run, name="turbodiffusion-read-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the reading, if it has not ended by itself; afterwards neither its thread nor the open file is left."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        reading = self.reading
        try:
            reading.cut = self._read()
        except OSError as error:
            reading.cut = str(error)
        reading.ended = time.perf_counter()
        logger.debug("Read %d of %d bytes of %s ahead. %s", reading.read, reading.wanted, reading.name, reading.cut)

    def _read(self) -> str:
        """Reads, and returns why it stopped early."""
        buffer = memoryview(bytearray(min(_CHUNK, self.reading.wanted)))
        for path in self._files:
            with open(path, "rb", buffering=0) as file:
                if cut := self._read_file(file, buffer):
                    return cut
        return "" if self.reading.read == self.reading.wanted else "The file ended."

    def _read_file(self, file: FileIO, buffer: memoryview) -> str:
        reading = self.reading
        while reading.read < reading.wanted:
            if self._stopped.is_set():
                return "It was stopped."
            if psutil.virtual_memory().available < self._headroom:
                return "Memory ran short."
            count = file.readinto(buffer[: reading.wanted - reading.read])
            if not count:
                break
            if reading.began is None:
                reading.began = time.perf_counter()
                logger.debug("Reading %s ahead.", reading.name)
            reading.read += count
        return ""


def total_size(files: Sequence[Path]) -> int:
    """The size of all files in bytes; a file that is gone, which its reader will report, counts 0."""
    return sum(path.stat().st_size for path in files if path.is_file())

"""Files made to hurt whoever reads them, and limits within which they must be dealt with."""

import os
import resource
import signal
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limits(megabytes: int = 1024, seconds: float = 5) -> Iterator[None]:
    """Fails unless the block takes less memory than that (at its peak, above the highest before) and less CPU time. A
    block that waits for ever is interrupted after a minute."""

    def interrupt(*_):
        raise TimeoutError("it waited for a minute")

    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    handler = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < megabytes, f"{grown:.0f} MB"
    assert time.process_time() - begun < seconds


def write_archive(path: Path, pickled: bytes, records: dict[str, bytes] | None = None, deflated: bool = False) -> Path:
    """A file as torch.save writes it, around any pickle; `records`: further files in it, by name."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, content in {"data.pkl": pickled, **(records or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return path


def read_archive(path: Path) -> dict[str, bytes]:
    """The files in such an archive, by name without the folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def fifo(path: Path) -> Path:
    """A named pipe that nobody writes to: opening it waits for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path

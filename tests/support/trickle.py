"""A pipe that delivers a byte every 10 ms, as a failing disk does: a reader gets no end of file."""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_MORE_THAN_A_PIPE_HOLDS = 1 << 20  # bytes; Linux' holds 64 KiB
_PAUSE = 0.01  # seconds


@contextlib.contextmanager
def trickle(path: Path) -> Iterator[threading.Event]:
    """Makes the pipe, and yields an event that is set once a process has read from it."""
    os.mkfifo(path)
    ended, begun = threading.Event(), threading.Event()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(path, "wb", buffering=0) as pipe:  # waits for a reader
            pipe.write(bytes(_MORE_THAN_A_PIPE_HOLDS))
            begun.set()
            while not ended.wait(_PAUSE):
                pipe.write(b"x")
        ended.wait()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield begun
    finally:
        ended.set()
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # unblocks the writer if no process has read
        thread.join()


def has_reader(path: Path) -> bool:
    """Whether any process has the pipe open for reading."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return False
        raise
    return True

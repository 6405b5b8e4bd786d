"""`dev.py bench memory`, which is in `phases`, and what the memory benches share: the size of an expert, and a watch
over a process's memory."""

import threading
import time
from pathlib import Path

GB = 1e9
EXPERT = {"dim": 5120, "ffn_dim": 13824, "layers": 40, "in_channels": 36}  # TurboWan2.2-I2V-A14B


def main(arguments: list[str]) -> int:
    from . import phases  # which imports this module

    return phases.main(arguments)


def resident(pid: int | str = "self") -> dict[str, float]:
    """A process's resident memory by kind, in GB (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.startswith(("RssAnon", "RssFile")))
    return {name.rstrip(":"): int(value) * 1024 / GB for name, value, _ in fields}


class MemoryWatch:
    """Around a block: its `seconds`, the peak of `anonymous` memory and what is left of it `after`, and the growth of
    file-backed (`mapped`) memory, in GB above the start, sampled every 10 ms."""

    def __enter__(self) -> "MemoryWatch":
        self._before, self._peak, self._done = resident(), 0.0, threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._watcher.join()
        after = resident()
        self.anonymous = max(self._peak, after["RssAnon"]) - self._before["RssAnon"]
        self.after = after["RssAnon"] - self._before["RssAnon"]
        self.mapped = after["RssFile"] - self._before["RssFile"]

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self._peak = max(self._peak, resident()["RssAnon"])

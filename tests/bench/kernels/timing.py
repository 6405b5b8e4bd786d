"""Timing of operators on a device, within a budget of seconds."""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

WARM_UPS = 3
REPETITIONS = 5
AHEAD = 2_000_000  # clocks that the GPU is kept busy before an event, about 1 ms: longer than the CPU takes to launch
SECONDS = 0.5  # of repetitions, for what is quick
FLUSHED_BELOW = 2.0  # ms: what is quicker could find its inputs in the L2 cache, which a model's next layer would not
FLUSH_BYTES = 128 << 20


class Timing(NamedTuple):
    """Milliseconds: the median and the first and last decile of the repetitions."""

    ms: float
    p10: float
    p90: float


def single(ms: float) -> Timing:
    """Of one run."""
    return Timing(ms, ms, ms)


class Clock:
    """Times on one device, within `budget` seconds from now."""

    def __init__(self, device: torch.device, budget: float, quick: bool = False):
        self.device, self._quick = device, quick
        self._end = time.monotonic() + budget
        self._flush = torch.empty(FLUSH_BYTES if device.type == "cuda" else 1, dtype=torch.uint8, device=device)

    def left(self) -> float:
        return self._end - time.monotonic()

    def time(self, run: Callable[[], object]) -> Timing:
        """The time of `run` on the device after a warm-up; on the CPU without a GPU. The launches are queued before the
        first of them runs, so that they cost what they cost in a step, where the CPU is ahead."""
        return self.interleaved({"": run})[""]

    def interleaved(
        self, runs: Mapping[str, Callable[[], object]], seconds: float = math.inf, warm_ups: int = WARM_UPS
    ) -> dict[str, Timing]:
        """As `time`, for several in turns, so that a change of the GPU's clocks meets all of them. There is one round
        at least, and none that would end more than `seconds` from now or after the budget."""
        samples: dict[str, list[float]] = {name: [] for name in runs}
        latest = {name: math.inf for name in runs}
        for _ in range(0 if self._quick else warm_ups):
            latest = {name: self.once(run) for name, run in runs.items()}
        start = time.monotonic()
        for rounds in itertools.count(1):
            for name, run in runs.items():
                if latest[name] < FLUSHED_BELOW:
                    self._flush.zero_()
                latest[name] = self.once(run)
                samples[name].append(latest[name])
            spent = time.monotonic() - start
            enough = rounds >= REPETITIONS and spent >= SECONDS
            if self._quick or enough or spent / rounds > min(seconds - spent, self.left()):
                break
        return {name: _summary(each) for name, each in samples.items()}

    def once(self, run: Callable[[], object]) -> float:
        """The milliseconds of one run."""
        if self.device.type != "cuda":
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def _summary(samples: list[float]) -> Timing:
    ordered = sorted(samples)

    def at(share: float) -> float:
        return ordered[round(share * (len(ordered) - 1))]

    return Timing(at(0.5), at(0.1), at(0.9))

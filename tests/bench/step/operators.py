"""The time of each operator of a step on the device."""

import time
from collections import defaultdict
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Operator(NamedTuple):
    """Milliseconds of all calls of an operator in a step, and how many."""

    name: str
    ms: float
    calls: int


class OperatorTimes(TorchDispatchMode):
    """Within the block, an event before and after every operator that is dispatched; views take no time and are left
    out. The launches must be ahead of the device, or an operator's time has its launch in it."""

    def __init__(self, device: torch.device):
        super().__init__()
        self._cuda = device.type == "cuda"
        self._marks: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = self._mark()
        result = function(*args, **(kwargs or {}))
        if not getattr(function, "is_view", False):
            self._marks.append((function.name().split(".")[0], before, self._mark()))
        return result

    def _mark(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def read(self) -> list[Operator]:
        """The operators, the longest first; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        ms, calls = defaultdict(float), defaultdict(int)
        for name, before, after in self._marks:
            ms[name] += before.elapsed_time(after) if self._cuda else (after - before) * 1e3
            calls[name] += 1
        found = [Operator(name, ms[name], calls[name]) for name in ms]
        return sorted(found, key=lambda operator: -operator.ms)

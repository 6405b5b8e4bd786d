"""What one sampling run did: seconds by phase, passes, operator calls. It travels with the run's data, so there is no register.

A run's models hold it as `last_run`, its LATENT under RUN. Nodes before and after a run add their own time through what they
pass on: a CONDITIONING's options carry seconds by phase under SECONDS, and whoever decodes a LATENT adds to its record."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .read_ahead import Reading

RUN = "turbodiffusion_run"
SECONDS = "turbodiffusion_seconds"


@dataclass
class Pass:
    """One call of an expert by the sampler. Times are seconds of `time.perf_counter`; the next pass or phase ends it."""

    expert: str
    sigma: float
    began: float
    ended: float | None = None


@dataclass
class RunRecord:
    """`seconds` by phase in order (text encode, high, switch, low, decode), `calls` by expert as TurboWAN counts them."""

    began: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    calls: dict[str, Counter] = field(default_factory=dict)
    read_ahead: Reading | None = None
    _phase: tuple[str, float] | None = None

    def enter(self, phase: str | None) -> float:
        """Ends the phase that runs, and begins another unless it is None. Returns the time."""
        now = time.perf_counter()
        if self._phase is not None:
            self.add(self._phase[0], now - self._phase[1])
        if self.passes and self.passes[-1].ended is None:
            self.passes[-1].ended = now
        self._phase = None if phase is None else (phase, now)
        return now

    def begin_pass(self, expert: str, sigma: float) -> Counter:
        """Enters the expert's phase; returns the counter of its calls."""
        self.passes.append(Pass(expert, sigma, self.enter(expert)))
        return self.calls.setdefault(expert, Counter())

    def add(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def summary(self) -> str:
        """One line: passes and seconds of each phase, and how far the low expert was read ahead."""
        count = Counter(each.expert for each in self.passes)
        parts = [
            f"{phase} {seconds:.1f} s"
            + (f" ({count[phase]} {'step' if count[phase] == 1 else 'steps'})" if phase in count else "")
            for phase, seconds in self.seconds.items()
        ]
        if self.read_ahead is not None:
            read, wanted = self.read_ahead.read / 1e9, self.read_ahead.wanted / 1e9
            parts.append(f"{read:.1f} of {wanted:.1f} GB of the low expert read ahead")
        return ", ".join(parts)


@contextmanager
def timed(latent: dict, phase: str) -> Iterator[None]:
    """Adds the block's seconds to the record of the run that made a LATENT, if it has one; a repetition replaces its time."""
    begun = time.perf_counter()
    yield
    record = latent.get(RUN)
    if record is not None:
        record.seconds[phase] = time.perf_counter() - begun

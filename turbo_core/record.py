"""What one sampling run did: seconds by phase, passes, operator calls. The record is kept with the run's data, not in a
global.

A run's models hold it as `last_run`, its LATENT under RUN. What was done for it earlier in the same prompt comes with
the CONDITIONING, as a Before under BEFORE in its options. Nodes that decode the LATENT add to the record."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from .read_ahead import Reading

RUN = "turbodiffusion_run"
BEFORE = "turbodiffusion_before"


@dataclass(frozen=True)
class Before:
    """A phase that came before a run, and the prompt it was done for: a result that ComfyUI keeps serves later prompts
    too, which then had no such phase."""

    phase: str
    seconds: float
    prompt: str | None


@dataclass
class Pass:
    """One call of an expert by the sampler. Times are seconds of `time.perf_counter`; the next pass or phase ends
    it."""

    expert: str
    sigma: float
    began: float
    ended: float | None = None


@dataclass
class RunRecord:
    """`seconds` by phase in order (text encode, load, high, switch, low, decode), `calls` by expert as TurboWAN counts
    them; `complete` when its sampler has finished."""

    began: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    calls: dict[str, Counter] = field(default_factory=dict)
    read_ahead: list[Reading] = field(default_factory=list)
    complete: bool = False
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
        """Adds seconds to those of a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def lines(self) -> list[str]:
        """The record for a user: a line for steps, seconds and each reading ahead."""
        parts = []
        for phase, seconds in self.seconds.items():
            each = [f"{step.ended - step.began:.1f}" for step in self.passes if step.expert == phase and step.ended]
            parts.append(f"{phase} {seconds:.1f} s" + (f" ({' + '.join(each)})" if len(each) > 1 else ""))
        count = Counter(step.expert for step in self.passes)
        steps = "1 step" if len(self.passes) == 1 else f"{len(self.passes)} steps"
        experts = f" ({', '.join(f'{number} {name}' for name, number in count.items())})" if len(count) > 1 else ""
        end = "" if self.complete else ", then it was interrupted or failed"
        lines = [f"{steps}{experts}{end}", f"{sum(self.seconds.values()):.1f} s: {', '.join(parts)}"]
        for reading in self.read_ahead:
            end = f": {reading.cut}" if reading.cut else "" if reading.wanted else ": No memory is free for it."
            lines.append(f"{amount(reading.read)} of {amount(reading.size)} of {reading.name} read ahead{end}")
        return lines

    @property
    def summary(self) -> str:
        """Steps and seconds in one line."""
        steps, seconds, *_ = self.lines()
        return f"{steps} in {seconds}"


def amount(size: float) -> str:
    """Bytes as a user reads them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


@contextmanager
def timed(latent: dict, phase: str) -> Iterator[None]:
    """Adds the block's seconds to the record of the run that made a LATENT, if it has one; a repetition replaces its
    time."""
    begun = time.perf_counter()
    yield
    record = latent.get(RUN)
    if record is not None:
        record.seconds[phase] = time.perf_counter() - begun

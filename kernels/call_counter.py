"""Counts operator calls, also those inside a compiled graph, where operators are opaque."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_current: ContextVar[Counter | None] = ContextVar("turbodiffusion_call_counter", default=None)


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """Within the block every operator call adds to `counter` under its name."""
    token = _current.set(counter)
    try:
        yield
    finally:
        _current.reset(token)


def count(name: str) -> None:
    """Adds one call of `name` to the counter of the surrounding context, if there is one."""
    counter = _current.get()
    if counter is not None:
        counter[name] += 1

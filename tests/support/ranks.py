"""Ranks as threads of this process: each has its own end of a real process group."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ...turbo_core.parallel.group import LOCAL, Group, connect, create_store, find_store

T = TypeVar("T")


def on_ranks(size: int, run: Callable[[Group], T]) -> list[T]:
    """What `run` returns on each rank. If one of them raises, the others' collectives end with it."""
    store = create_store(LOCAL, size)

    def one(rank: int) -> T:
        own = store if rank == 0 else find_store(LOCAL, store.port, size)
        group = connect(own, LOCAL, rank, size, "gloo")
        try:
            return run(group)
        finally:
            group.abort()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))

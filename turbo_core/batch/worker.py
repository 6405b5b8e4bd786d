"""What the dispatcher needs of a worker, a ComfyUI server that runs jobs. A failure of a job is an outcome, never an
exception."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from .job import Task
from .text import LONGEST, brief
from .workflow import Prompt


class WorkerFailed(Exception):
    """The worker cannot take jobs now; the message says why."""

    def __init__(self, message: str):
        super().__init__(brief(message, LONGEST))


class WorkerUnusable(WorkerFailed):
    """The worker's server does not answer as ComfyUI does: it is not tried again."""


@dataclass
class Outcome:
    """How an attempt ended: files as (server's name, content), or an error. `lost`: the worker was lost, and the job
    may not be at fault; `unusable`: the worker must not be tried again."""

    prompt: Prompt
    files: list[tuple[str, bytes]] = field(default_factory=list)
    strip: bytes | None = None
    timings: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    error: str | None = None
    lost: bool = False
    unusable: bool = False


class Worker(Protocol):
    """A worker. `run` yields events and at last an Outcome; it may raise WorkerFailed. An event with `began` says that
    the server has begun with the prompt, one with `free` that it has finished it, while its files are still being
    fetched."""

    name: str

    async def start(self) -> dict[str, Any]:
        """Makes the worker ready and says what it is. Raises WorkerFailed."""

    async def object_info(self) -> dict[str, Any]:
        """The answer of /object_info. Raises WorkerFailed, or WorkerUnusable where it is not one of ComfyUI."""

    def run(self, task: Task) -> AsyncIterator[dict[str, Any] | Outcome]:
        """Makes one attempt at a job."""

    async def reset(self) -> None:
        """Replaces what may be broken after failures: frees memory, or restarts the server. Raises WorkerFailed."""

    async def stop(self) -> None:
        """Ends the worker, and its server if that is its own."""

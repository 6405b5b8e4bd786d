"""Compiling kernels ahead of their first launch, on threads of their own while files are read and prompts encoded.

Triton compiles a kernel for each combination of types, constants and launch config at its first launch, in seconds. One
thread lists the kernels, by calls of the operators' implementations within `launch.compiling_for`; a few others compile
them (`triton.AsyncCompileMode`), most of the time without holding the GIL. A kernel that fails here is compiled again
by the launch that needs it, which raises the error. Triton's own cache on disk keeps the results for the next start."""

import atexit
import contextlib
import functools
import importlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple

import torch

from .launch import Chip, chip_at, compiling_for

logger = logging.getLogger("turbodiffusion")

MAX_THREADS = 4  # each also runs a process of ptxas; more would compete with what goes on meanwhile
_EXIT_SECONDS = 10  # for the kernels that are being compiled when the process ends: a thread cannot be stopped


class Progress(NamedTuple):
    done: int
    total: int


def thread_count() -> int:
    """How many kernels are compiled at once: a core is left to what goes on meanwhile."""
    return max(1, min(MAX_THREADS, (os.cpu_count() or 2) - 1))


class _Workers(Executor):
    """Daemon threads that end when the queue is empty. Unlike with the executors of concurrent.futures, a process exits
    without working off the queue."""

    def __init__(self, count: int):
        self._count = count
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.submitted = self.finished = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._lock:
            self.submitted += 1
            self._jobs.put((future, functools.partial(function, *args, **kwargs)))
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            if len(self._threads) < self._count:
                thread = threading.Thread(target=self._work, name="turbodiffusion-compile", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def _work(self) -> None:
        while True:
            with self._lock:  # so that no job is added between the check of the queue and the end of the thread
                if self._jobs.empty():
                    self._threads.remove(threading.current_thread())
                    return
                future, job = self._jobs.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except Exception as error:  # noqa: BLE001 - given to whoever asks for the result
                    future.set_exception(error)
            with self._lock:
                self.finished += 1

    def stop(self) -> None:
        """Drops what has not begun, and waits for the rest for at most `_EXIT_SECONDS`."""
        with self._lock:
            while not self._jobs.empty():
                self._jobs.get()[0].cancel()
            threads = list(self._threads)
        end = time.monotonic() + _EXIT_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))


class BackgroundCompiler:
    """Compiles kernels for one device, `threads` at once (None: `thread_count`). Never needed for a result: a kernel
    that it has not compiled is compiled by its first launch."""

    def __init__(self, device: torch.device, chip: Chip, threads: int | None = None):
        self._device, self._chip = device, chip
        self._calls: list[Callable[[], object]] = []
        self._changed = threading.Condition()
        self._busy = False
        self._workers = _Workers(threads or thread_count())
        atexit.register(self._workers.stop)

    def add(self, calls: Iterable[Callable[[], object]]) -> None:
        """Begins to compile each kernel that these calls launch. Returns at once; their errors are not raised."""
        with self._changed:
            self._calls += calls
            if self._calls and not self._busy:
                self._busy = True
                threading.Thread(target=self._run, name="turbodiffusion-list-kernels", daemon=True).start()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until everything is compiled, for at most `seconds`; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, seconds)

    @property
    def progress(self) -> Progress:
        """Kernels that were compiled or read from Triton's cache, and kernels that were requested, since the start."""
        return Progress(self._workers.finished, self._workers.submitted)

    def _run(self) -> None:
        try:
            while calls := self._taken():
                self._compile(calls)
        except Exception as error:  # noqa: BLE001 - the launch that needs a kernel raises its error
            logger.debug("Kernels are not compiled ahead: %s", error)
            with self._changed:
                self._calls, self._busy = [], False
                self._changed.notify_all()

    def _taken(self) -> list[Callable[[], object]]:
        with self._changed:
            calls, self._calls = self._calls, []
            if not calls:
                self._busy = False
                self._changed.notify_all()
            return calls

    def _compile(self, calls: list[Callable[[], object]]) -> None:
        mode = getattr(importlib.import_module("triton"), "AsyncCompileMode", None)
        several = contextlib.nullcontext() if mode is None else mode(self._workers, ignore_errors=True)
        device = torch.cuda.device(self._device) if self._device.type == "cuda" else contextlib.nullcontext()
        with device, torch.inference_mode(), compiling_for(self._chip), several:
            for call in calls:
                try:
                    call()
                except Exception as error:  # noqa: BLE001 - as above
                    logger.debug("A kernel is not compiled ahead: %s", error)


@functools.cache
def background_compiler(device: torch.device) -> BackgroundCompiler:
    """The compiler of a device, which must be one that Triton runs on."""
    return BackgroundCompiler(device, chip_at(device))

"""Gives jobs to workers, tries failed ones again, and decides when the batch ends."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TurboError
from . import manifest as states
from .job import Job, Task, placement
from .manifest import Manifest, ManifestError
from .notes import Emit
from .results import DiskFull, Results
from .worker import Outcome, Worker, WorkerFailed, WorkerUnusable

_LOSSES = 4  # times in a row that a worker may be lost or not start
_RESET_AFTER = 2  # failed jobs in a row after which a worker is reset, since its server may be the cause
_PAUSE = 2.0  # seconds before a lost worker is started again, times the losses
# Seconds. A server whose jobs take less gets the next one ahead, because the time between two jobs would count.
_SHORT = 5.0


class Stopped(TurboError):
    """The batch cannot go on; the jobs that are left wait for the next start."""


class JobQueue:
    """The waiting jobs in groups that share models and size. A worker stays with its group, then with its models, then
    takes the group with the most jobs per worker; a job that failed goes to a worker that has not had it, if there is
    one. `running_on` has the worker that may still run a job for a batch that was killed."""

    def __init__(self, jobs: Iterable[Job], running_on: dict[str, str]):
        self._groups: dict[tuple[str, str], deque[Job]] = {}
        self._tried: dict[str, set[str]] = {}
        self._at: dict[str, tuple[str, str]] = {}  # the group each working worker is in
        self._running_on, self._changed = running_on, asyncio.Condition()
        self._open = 0
        for job in jobs:
            self._groups.setdefault(placement(job.prompt), deque()).append(job)
            self._open += 1

    async def take(self, worker: str) -> Job | None:
        """The next job for that worker, waited for while others may still give one back; None when all are finished."""
        async with self._changed:
            self._at.setdefault(worker, ("", ""))
            self._changed.notify_all()  # one worker more that a failed job may wait for
            await self._changed.wait_for(lambda: not self._open or self._choose(worker))
            choice = self._choose(worker) if self._open else None
            if choice is None:
                return None
            group, job = choice
            self._groups[group].remove(job)
            self._at[worker] = group
            return job

    async def give_back(self, job: Job, worker: str | None) -> None:
        """Puts back a job that `worker` could not do, or, for None, that no worker has tried."""
        async with self._changed:
            if worker is not None:
                self._tried.setdefault(job.id, set()).add(worker)
            self._groups[placement(job.prompt)].appendleft(job)
            self._changed.notify_all()

    async def finish(self) -> None:
        """Counts one job as done, or failed for good."""
        async with self._changed:
            self._open -= 1
            self._changed.notify_all()

    async def leave(self, worker: str) -> None:
        """The worker takes no jobs until it asks again."""
        async with self._changed:
            self._at.pop(worker, None)
            self._running_on = {job: name for job, name in self._running_on.items() if name != worker}
            self._changed.notify_all()

    def _choose(self, worker: str) -> tuple[tuple[str, str], Job] | None:
        mine = self._at.get(worker, ("", ""))
        busy = Counter(group for name, group in self._at.items() if name != worker)

        def rank(group: tuple[str, str]) -> tuple[bool, bool, float]:
            return group == mine, group[0] == mine[0], len(self._groups[group]) / (1 + busy[group])

        for group in sorted((group for group, jobs in self._groups.items() if jobs), key=rank, reverse=True):
            for job in self._groups[group]:
                if self._may(worker, job):
                    return group, job
        return None

    def _may(self, worker: str, job: Job) -> bool:
        tried = self._tried.get(job.id, set())
        if not tried and self._running_on.get(job.id, worker) != worker:
            return False  # its server may still run it for a batch that was killed
        return worker not in tried or tried >= self._at.keys()


@dataclass
class _Attempt:
    """One attempt at a job on a worker. `free` is called when the worker can take another job."""

    worker: Worker
    job: Job
    number: int
    free: Callable[[], None]
    began: bool = False  # whether the server has sent an event of the prompt


class Dispatcher:
    """Runs jobs on workers until each is done or has failed `retries` + 1 times. `emit` gets every event as a dict."""

    def __init__(self, manifest: Manifest, results: Results, retries: int, timeout: float | None, emit: Emit):
        self._manifest, self._results, self._emit = manifest, results, emit
        self._retries, self._timeout = retries, timeout
        self._failures: Counter[str] = Counter()  # by job
        self._refused: Counter[str] = Counter()  # by job: times that a server was lost before it began with it
        self._done: Counter[str] = Counter()  # by worker
        self._running: dict[str, float] = {}  # seconds that a worker's last job ran
        self._workers = 0

    async def run(self, jobs: Iterable[Job], workers: Sequence[Worker], running_on: Mapping[str, str]) -> None:
        """Raises Stopped when jobs are left and nothing can run them. Cancelling it gives the running jobs back."""
        names = {worker.name for worker in workers}
        self._workers = len(names)
        self._queue = JobQueue(jobs, {job: name for job, name in running_on.items() if name in names})
        serving = {asyncio.ensure_future(self._serve(worker)) for worker in workers}
        ends: list[bool] = []
        try:
            waiting = serving
            # The first to see the end of the queue ends the batch: another may still wait for a machine.
            while waiting and not any(ends):
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                ends += [task.result() for task in done]
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
            await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True)
        if not any(ends):
            raise Stopped("No worker is left; put right what the messages above say and start again with --resume.")

    async def _serve(self, worker: Worker) -> bool:
        """Works until the queue ends (True) or the worker is given up (False)."""
        losses, fault = 0, {}
        while losses < _LOSSES:
            before = self._done[worker.name]
            try:
                self._emit({"event": "worker", "worker": worker.name, "state": "starting"})
                info = await worker.start()
                self._emit({"event": "worker", "worker": worker.name, "state": "ready", **info})
                await self._work(worker)
                return True
            except WorkerUnusable as error:
                await self._queue.leave(worker.name)
                fault = {"error": str(error)}
                break
            except WorkerFailed as error:
                losses = losses + 1 if self._done[worker.name] == before else 1
                await self._queue.leave(worker.name)
                self._emit({"event": "worker", "worker": worker.name, "state": "lost", "error": str(error)})
                await asyncio.sleep(_PAUSE * losses)
        self._emit({"event": "worker", "worker": worker.name, "state": "given up", **fault})
        return False

    async def _work(self, worker: Worker) -> None:
        """Runs jobs until the queue ends. The next job is sent as soon as the server is free, and the files of the last
        one are fetched while it runs. After a short job it is sent as soon as the job has begun, so that the server
        never waits; sent ahead of a long one it could not go to a worker that is free sooner."""
        failures = 0
        last: asyncio.Future[bool] | None = None
        try:
            while (job := await self._queue.take(worker.name)) is not None:
                if last is not None and last.done() and last.exception():
                    await self._queue.give_back(job, None)
                    last.result()
                previous, last = last, await self._send(worker, job)
                for attempt in filter(None, (previous, last if last.done() else None)):
                    failures = 0 if await attempt else failures + 1
                if last.done():
                    last = None
                if failures >= _RESET_AFTER and last is None:
                    await worker.reset()
                    failures = 0
            if last is not None:
                await last
        except WorkerFailed:
            if last is not None:  # the other attempt fails with the same worker, and gives its job back itself
                (ended,) = await asyncio.gather(last, return_exceptions=True)
                if isinstance(ended, Stopped):
                    raise ended from None
            raise
        finally:
            if last is not None and not last.done():
                last.cancel()
                await asyncio.gather(last, return_exceptions=True)

    async def _send(self, worker: Worker, job: Job) -> "asyncio.Future[bool]":
        """Starts an attempt at a job, and returns it when the worker can take another; the attempt then goes on."""
        free = asyncio.Event()
        attempt = asyncio.ensure_future(self._attempt(worker, job, free.set))
        attempt.add_done_callback(lambda _: free.set())
        try:
            await free.wait()
        except asyncio.CancelledError:
            attempt.cancel()
            await asyncio.gather(attempt, return_exceptions=True)
            raise
        return attempt

    async def _attempt(self, worker: Worker, job: Job, free: Callable[[], None]) -> bool:
        """Whether the job was done; calls `free` when the worker can take another. Raises WorkerFailed if the worker is
        lost, Stopped if results or the manifest cannot be written."""
        try:
            attempt = _Attempt(worker, job, self._manifest.begin(job.id, worker.name), free)
        except ManifestError as fault:
            raise Stopped(str(fault)) from fault
        self._emit({"event": "start", **_named(attempt)})
        error: str | None = None
        lost: WorkerFailed | None = None
        seconds: float | None = None
        try:
            outcome = await self._outcome(attempt)
            error, seconds = outcome.error, outcome.timings.get("total")
            self._running[worker.name] = outcome.timings.get("running", _SHORT)
            if outcome.lost:
                lost = (WorkerUnusable if outcome.unusable else WorkerFailed)(error or "The worker was lost.")
            elif not error:
                await asyncio.to_thread(self._results.save, job, outcome, worker.name, attempt.number)
        except WorkerFailed as failure:
            error, lost = str(failure), failure
        except DiskFull as full:
            self._end(attempt, states.PENDING, str(full))
            raise Stopped(str(full)) from full
        except TurboError as failure:
            error = str(failure)
        except asyncio.CancelledError:
            self._end(attempt, states.PENDING, "The batch was stopped.")
            raise
        await self._settle(attempt, error, seconds, self._is_charged(attempt, lost))
        if lost:
            raise lost
        return not error

    def _is_charged(self, attempt: _Attempt, lost: WorkerFailed | None) -> bool:
        """Whether a failed attempt counts against the job's retries. Not if the server is not tried again, nor if it
        was lost before it began with the prompt; the latter at most as often as there are workers, since the prompt
        itself may be the cause."""
        if isinstance(lost, WorkerUnusable):
            return False
        if lost is None or attempt.began:
            return True
        self._refused[attempt.job.id] += 1
        return self._refused[attempt.job.id] > self._workers

    async def _settle(self, attempt: _Attempt, error: str | None, seconds: float | None, is_charged: bool) -> None:
        job, event = attempt.job, {**_named(attempt), "seconds": seconds}
        if not error:
            self._end(attempt, states.DONE, None, seconds)
            self._done[attempt.worker.name] += 1
            self._emit({"event": "done", **event})
            return await self._queue.finish()
        self._failures[job.id] += is_charged
        again = self._failures[job.id] <= self._retries
        self._end(attempt, states.PENDING if again else states.FAILED, error)
        self._emit({"event": "retry" if again else "failed", **event, "error": error})
        await (self._queue.give_back(job, attempt.worker.name) if again else self._queue.finish())

    def _end(self, attempt: _Attempt, state: str, error: str | None, seconds: float | None = None) -> None:
        try:
            self._manifest.end(attempt.job.id, attempt.number, state, error, seconds)
        except ManifestError as fault:
            raise Stopped(str(fault)) from fault

    async def _outcome(self, attempt: _Attempt) -> Outcome:
        worker, job = attempt.worker, attempt.job
        try:
            files = {name: await asyncio.to_thread(Path(path).read_bytes) for name, path in job.uploads.items()}
        except OSError as error:
            raise TurboError(f"{error.filename} cannot be read ({error.strerror}).") from error
        outcome = None
        async for item in worker.run(Task(job.id, attempt.number, job.prompt, files, self._timeout)):
            if isinstance(item, Outcome):
                outcome = item
                continue
            attempt.began = True
            if "began" not in item and "free" not in item:
                self._emit({"event": "progress", **_named(attempt), **item})
            elif "free" in item or self._running.get(worker.name, _SHORT) < _SHORT:
                attempt.free()
        if outcome is None:
            raise WorkerFailed("The worker ended without an answer.")
        return outcome


def _named(attempt: _Attempt) -> dict[str, Any]:
    """The fields that every event of an attempt has."""
    job = attempt.job
    return {"job": job.id, "row": job.row, "worker": attempt.worker.name, "attempt": attempt.number}

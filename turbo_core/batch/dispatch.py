"""Jobs to workers: which job goes where, what is tried again, when the batch ends."""

import asyncio
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path

from ..errors import TurboError
from . import manifest as states
from .job import Job, Task, placement
from .manifest import Manifest
from .results import DiskFull, Results
from .worker import Outcome, Worker, WorkerFailed

_LOSSES = 4  # times in a row that a worker may be lost or not start
_RESET_AFTER = 2  # failed jobs in a row after which a worker is cleaned: its server may be what is broken
_PAUSE = 2.0  # seconds before a lost worker is started again, times the losses
_SHORT = (
    5.0  # seconds of a job, below which its server gets the next one ahead: there the way to it and back would count
)


class Stopped(TurboError):
    """The batch cannot go on; the jobs that are left wait for the next start."""


class JobQueue:
    """The waiting jobs in groups that share models and size. A worker stays with its group, then with its models, then takes
    the group with the most jobs per worker; a job that failed goes to a worker that has not had it, if there is one."""

    def __init__(self, jobs: Iterable[Job], homes: dict[str, str]):
        self._groups: dict[tuple[str, str], deque[Job]] = {}
        self._tried: dict[str, set[str]] = {}
        self._at: dict[str, tuple[str, str]] = {}  # the group each working worker is in
        self._homes, self._changed = homes, asyncio.Condition()
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
        """The worker could not do it; without one, nobody tried."""
        async with self._changed:
            if worker is not None:
                self._tried.setdefault(job.id, set()).add(worker)
            self._groups[placement(job.prompt)].appendleft(job)
            self._changed.notify_all()

    async def finish(self) -> None:
        """One job is done, or failed for good."""
        async with self._changed:
            self._open -= 1
            self._changed.notify_all()

    async def leave(self, worker: str) -> None:
        """The worker takes no jobs until it asks again."""
        async with self._changed:
            self._at.pop(worker, None)
            self._homes = {job: home for job, home in self._homes.items() if home != worker}
            self._changed.notify_all()

    def _choose(self, worker: str) -> tuple[tuple[str, str], Job] | None:
        mine = self._at.get(worker, ("", ""))
        busy = Counter(group for name, group in self._at.items() if name != worker)

        def rank(group: tuple[str, str]) -> tuple:
            return group == mine, group[0] == mine[0], len(self._groups[group]) / (1 + busy[group])

        for group in sorted((group for group, jobs in self._groups.items() if jobs), key=rank, reverse=True):
            for job in self._groups[group]:
                if self._may(worker, job):
                    return group, job
        return None

    def _may(self, worker: str, job: Job) -> bool:
        tried = self._tried.get(job.id, set())
        if not tried and self._homes.get(job.id, worker) != worker:
            return False  # its server may still be at it, from a batch that was killed
        return worker not in tried or tried >= self._at.keys()


class Dispatcher:
    """Runs jobs on workers until each is done or has failed `retries` + 1 times. `tell` gets every event as a dict."""

    def __init__(
        self, manifest: Manifest, results: Results, retries: int, timeout: float | None, tell: Callable[[dict], None]
    ):
        self._manifest, self._results, self._tell = manifest, results, tell
        self._retries, self._timeout = retries, timeout
        self._failures: Counter[str] = Counter()  # by job
        self._done: Counter[str] = Counter()  # by worker
        self._running: dict[str, float] = {}  # seconds that a worker's last job ran

    async def run(self, jobs: list[Job], workers: list[Worker], homes: dict[str, str]) -> None:
        """Raises Stopped when jobs are left and nothing can run them. Cancelling it gives the running jobs back."""
        self._queue = JobQueue(jobs, {job: home for job, home in homes.items() if home in {w.name for w in workers}})
        serving = {asyncio.ensure_future(self._serve(worker)) for worker in workers}
        ends = []
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
        losses = 0
        while losses < _LOSSES:
            before = self._done[worker.name]
            try:
                self._tell({"event": "worker", "worker": worker.name, "state": "starting"})
                info = await worker.start()
                self._tell({"event": "worker", "worker": worker.name, "state": "ready", **info})
                await self._work(worker)
                return True
            except WorkerFailed as error:
                losses = losses + 1 if self._done[worker.name] == before else 1
                await self._queue.leave(worker.name)
                self._tell({"event": "worker", "worker": worker.name, "state": "lost", "error": str(error)})
                await asyncio.sleep(_PAUSE * losses)
        self._tell({"event": "worker", "worker": worker.name, "state": "given up"})
        return False

    async def _work(self, worker: Worker) -> None:
        """Jobs until the queue ends. The next one is sent as soon as the server is free: while it runs, the last one's files are
        fetched and written. Short ones are sent when the one before has begun, so that the server never waits; a long one would
        be kept from a worker that is free sooner."""
        failures, last = 0, None
        try:
            while (job := await self._queue.take(worker.name)) is not None:
                if last is not None and last.done() and last.exception():
                    await self._queue.give_back(job, None)
                    last.result()
                free, previous = asyncio.Event(), last
                last = asyncio.ensure_future(self._attempt(worker, job, free.set))
                last.add_done_callback(lambda _, free=free: free.set())
                await free.wait()
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
            if last is not None:  # what was lost with the other attempt ends by itself, and gives its job back
                (ended,) = await asyncio.gather(last, return_exceptions=True)
                if isinstance(ended, Stopped):
                    raise ended from None
            raise
        finally:
            if last is not None and not last.done():
                last.cancel()
                await asyncio.gather(last, return_exceptions=True)

    async def _attempt(self, worker: Worker, job: Job, free: Callable[[], None]) -> bool:
        """Whether the job was done; calls `free` when the worker can take another. Raises WorkerFailed if the worker is lost,
        Stopped if nothing can be kept."""
        try:
            number = self._manifest.begin(job.id, worker.name)
        except sqlite3.OperationalError as error:
            raise _stopped(error) from error
        self._tell({"event": "start", "job": job.id, "row": job.row, "worker": worker.name, "attempt": number})
        error, lost, seconds = None, False, None
        try:
            outcome = await self._outcome(worker, job, number, free)
            error, lost, seconds = outcome.error, outcome.lost, outcome.timings.get("total")
            self._running[worker.name] = outcome.timings.get("running", _SHORT)
            if not error:
                await asyncio.to_thread(self._results.save, job, outcome, worker.name, number)
        except WorkerFailed as failure:
            error, lost = str(failure), True
        except DiskFull as full:
            self._end(job, number, states.PENDING, str(full))
            raise Stopped(str(full)) from full
        except TurboError as failure:
            error = str(failure)
        except asyncio.CancelledError:
            self._end(job, number, states.PENDING, "The batch was stopped.")
            raise
        await self._settle(worker, job, number, error, seconds)
        if lost:
            raise WorkerFailed(error)
        return not error

    async def _settle(self, worker: Worker, job: Job, number: int, error: str | None, seconds: float | None) -> None:
        event = {"job": job.id, "row": job.row, "worker": worker.name, "attempt": number, "seconds": seconds}
        if not error:
            self._end(job, number, states.DONE, None, seconds)
            self._done[worker.name] += 1
            self._tell({"event": "done", **event})
            return await self._queue.finish()
        self._failures[job.id] += 1
        again = self._failures[job.id] <= self._retries
        self._end(job, number, states.PENDING if again else states.FAILED, error)
        self._tell({"event": "retry" if again else "failed", **event, "error": error})
        await (self._queue.give_back(job, worker.name) if again else self._queue.finish())

    def _end(self, job: Job, number: int, state: str, error: str | None, seconds: float | None = None) -> None:
        try:
            self._manifest.end(job.id, number, state, error, seconds)
        except sqlite3.OperationalError as fault:
            raise _stopped(fault) from fault

    async def _outcome(self, worker: Worker, job: Job, number: int, free: Callable[[], None]) -> Outcome:
        try:
            files = {name: await asyncio.to_thread(Path(path).read_bytes) for name, path in job.uploads.items()}
        except OSError as error:
            raise TurboError(f"{error.filename} cannot be read ({error.strerror}).") from error
        outcome = None
        async for item in worker.run(Task(job.id, number, job.prompt, files, self._timeout)):
            if isinstance(item, Outcome):
                outcome = item
            elif "began" in item or "free" in item:
                if "free" in item or self._running.get(worker.name, _SHORT) < _SHORT:
                    free()
            else:
                self._tell({"event": "progress", "job": job.id, "row": job.row, "worker": worker.name, **item})
        if outcome is None:
            raise WorkerFailed("The worker ended without an answer.")
        return outcome


def _stopped(error: sqlite3.Error) -> Stopped:
    return Stopped(f"The manifest could not be written ({error}); make room and start again with --resume.")

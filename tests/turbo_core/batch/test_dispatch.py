"""Which job goes to which worker, and what happens to jobs whose worker or server lets them down; with scripted
workers."""

import asyncio
import contextlib
import errno
import itertools
import json
import sqlite3
import time
from collections import Counter

import pytest
from td_pack.turbo_core.batch import dispatch
from td_pack.turbo_core.batch import results as results_module
from td_pack.turbo_core.batch.dispatch import Dispatcher, Stopped
from td_pack.turbo_core.batch.job import Job
from td_pack.turbo_core.batch.manifest import NAME, Manifest
from td_pack.turbo_core.batch.notes import Notes
from td_pack.turbo_core.batch.results import Results
from td_pack.turbo_core.batch.worker import Outcome, WorkerFailed, WorkerUnusable


def job(i: int, model: str = "a.pth", width: int = 64) -> Job:
    return Job(f"{i:020}", i, {"1": {"class_type": "X", "inputs": {"model_name": model, "width": width, "seed": i}}})


class Scripted:
    """A worker whose `does` decides each attempt: None is success, a text the job's error, an exception is raised.
    `takes` gives an exception to raise before the server begins."""

    def __init__(self, name, does=lambda task: None, starts=lambda: None, takes=lambda task: None):
        self.name, self._does, self._starts, self._takes = name, does, starts, takes
        self.had, self.resets, self.stopped = [], 0, False

    async def start(self):
        if error := self._starts():
            raise error
        return {}

    async def run(self, task):
        self.had.append(int(task.job))
        if error := self._takes(task):
            raise error
        yield {"node": "x", "value": 0, "max": 0}
        await asyncio.sleep(0.01)
        error = self._does(task)
        if isinstance(error, BaseException):
            raise error
        yield Outcome(task.prompt, [("a.mp4", b"x")], None, {"total": 0.01}, "", error)

    async def reset(self):
        self.resets += 1

    async def stop(self):
        self.stopped = True


@pytest.fixture
def batch(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "_PAUSE", 0.01)
    results, manifest, events = Results(tmp_path), Manifest(tmp_path, wait=0.1), []

    async def run(jobs, *workers, retries=2, running_on=None, timeout=None):
        manifest.add(jobs)
        dispatcher = Dispatcher(manifest, results, retries, timeout, events.append)
        await asyncio.wait_for(dispatcher.run(jobs, list(workers), running_on or {}), 300)  # it hangs

    def go(*arguments, **options):
        try:
            asyncio.run(run(*arguments, **options))
        finally:
            go.states = Counter(record.state for record in manifest.records())
            go.records = {record.job.row: record for record in manifest.records()}
        return go.states

    go.events = events
    yield go
    manifest.close()
    results.close()


def test_every_job_is_done_once_and_workers_are_stopped(batch):
    a, b = Scripted("a"), Scripted("b")
    assert batch([job(i) for i in range(20)], a, b) == {"done": 20}
    assert sorted(a.had + b.had) == list(range(20)) and a.had and b.had and a.stopped and b.stopped


def test_jobs_of_one_model_stay_on_one_worker_until_its_group_is_empty(batch):
    jobs = [job(i, f"{'ab'[i % 2]}.pth") for i in range(20)]
    a, b = Scripted("a"), Scripted("b")
    batch(jobs, a, b)
    assert {i % 2 for i in a.had[:8]} != {i % 2 for i in b.had[:8]}
    switches = sum(x % 2 != y % 2 for had in (a.had, b.had) for x, y in itertools.pairwise(had))
    assert switches <= 2


def test_a_job_that_failed_goes_to_another_worker(batch):
    a, b = Scripted("a", lambda task: "broken here"), Scripted("b")
    assert batch([job(i) for i in range(6)], a, b) == {"done": 6}
    assert all(i in b.had for i in a.had)
    assert max(Counter(a.had).values()) == 1


def test_a_job_that_always_fails_is_tried_so_often_and_the_rest_finish(batch):
    a, b = (Scripted(name, lambda task: "no" if int(task.job) == 3 else None) for name in "ab")
    assert batch([job(i) for i in range(6)], a, b, retries=2) == {"done": 5, "failed": 1}
    assert (a.had + b.had).count(3) == 3 and batch.records[3].error == "no"
    assert 3 in a.had and 3 in b.had


def test_a_worker_with_failures_in_a_row_is_reset(batch):
    a = Scripted("a", lambda task: "no")
    batch([job(i) for i in range(4)], a, retries=0)
    assert a.resets == 2


def test_a_lost_worker_s_job_is_done_elsewhere_and_the_worker_comes_back(batch):
    losses = []

    def once(task):
        if not losses:
            losses.append(task.job)
            return WorkerFailed("gone")

    a, b = Scripted("a", once), Scripted("b")
    assert batch([job(i) for i in range(12)], a, b) == {"done": 12}
    assert len(a.had) + len(b.had) == 13 and len(a.had) > 1
    states = [event["state"] for event in batch.events if event["event"] == "worker" and event["worker"] == "a"]
    assert states == ["starting", "ready", "lost", "starting", "ready"]


def test_a_server_lost_in_the_middle_of_a_job_costs_it_a_try(batch):
    losses = iter([WorkerFailed("gone")])
    assert batch([job(0)], Scripted("a", lambda task: next(losses, None)), retries=0) == {"failed": 1}


@pytest.mark.parametrize("when", ["does", "takes"])
def test_an_unusable_worker_s_job_is_done_elsewhere_without_a_retry(batch, when):
    """Also in the middle of the job; the worker is not tried again."""
    a, b = Scripted("a", **{when: lambda task: WorkerUnusable("no ComfyUI")}), Scripted("b")
    assert batch([job(i) for i in range(8)], a, b, retries=0) == {"done": 8}
    assert 1 <= len(a.had) <= 2 and sorted(b.had) == list(range(8))
    states = [event.get("state") for event in batch.events if event.get("worker") == "a"]
    assert "lost" not in states and states[-1] == "given up"


def test_a_prompt_that_no_server_takes_fails_in_the_end(batch):
    """A loss before the server begins is not charged to the job, but as often as there are workers."""

    def takes(task):
        return WorkerFailed("connection reset") if int(task.job) == 3 else None

    a, b = (Scripted(name, takes=takes) for name in "ab")
    assert batch([job(i) for i in range(40)], a, b, retries=0) == {"done": 39, "failed": 1}
    assert (a.had + b.had).count(3) == 3 and batch.records[3].error == "connection reset"


def test_a_clock_that_jumps_changes_no_duration_and_ends_no_job(batch, monkeypatch, tmp_path):
    """Hours forth and back at every look at the wall clock."""
    jumps, now = itertools.cycle([1e6, -2e6, 5e5]), time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))

    class Timed(Scripted):
        async def run(self, task):
            notes = Notes(task, lambda event: None)
            notes.take("execution_start", {})
            notes.take("executing", {"node": "1"})
            await asyncio.sleep(0.01)
            notes.ended()
            yield Outcome(task.prompt, [("a.mp4", b"x")], None, notes.timings(), notes.text(), None)

    assert batch([job(i) for i in range(6)], Timed("a"), timeout=100) == {"done": 6}
    assert all(0.01 <= record.seconds < 100 for record in batch.records.values())
    timings = json.loads((tmp_path / job(0).id / "timings.json").read_text())
    assert timings.keys() == {"total", "queued", "running", "fetching", "nodes"}


def test_a_worker_that_never_starts_is_given_up_and_the_rest_go_on(batch):
    a, b = Scripted("a", starts=lambda: WorkerFailed("no GPU")), Scripted("b")
    assert batch([job(i) for i in range(30)], a, b) == {"done": 30}


def test_without_a_worker_the_batch_stops_and_loses_nothing(batch):
    with pytest.raises(Stopped, match="No worker is left"):
        batch([job(0)], Scripted("a", starts=lambda: WorkerFailed("no GPU")))
    assert batch.states == {"pending": 1}


def test_a_worker_still_waiting_for_a_machine_does_not_hold_the_end(batch):
    class Waiting(Scripted):
        async def start(self):
            await asyncio.Event().wait()

    assert batch([job(i) for i in range(3)], Scripted("a"), Waiting("b")) == {"done": 3}


def test_a_full_disk_stops_the_batch_and_keeps_what_is_left(batch, monkeypatch):
    write, written = results_module._write, []

    def until_full(path, data):
        written.append(path)
        if len(written) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(results_module, "_write", until_full)
    with pytest.raises(Stopped, match="is full; make room and start again with --resume"):
        batch([job(i) for i in range(6)], Scripted("a"))
    assert batch.states == {"done": 2, "pending": 4}


def test_a_manifest_that_another_program_holds_stops_the_batch(batch, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / NAME, isolation_level=None)) as other:
        with pytest.raises(Stopped, match="could not be written .*locked"):
            batch([job(0)], Scripted("a", starts=lambda: other.execute("BEGIN IMMEDIATE") and None))
        other.execute("ROLLBACK")


def test_a_job_whose_server_may_still_be_at_it_goes_back_there(batch):
    a, b = Scripted("a"), Scripted("b")
    batch([job(i) for i in range(8)], a, b, running_on={job(7).id: "b", job(0).id: "b"})
    assert {0, 7} <= set(b.had)


def test_the_next_job_runs_while_the_last_one_s_files_come(batch):
    class Overlapping(Scripted):
        order = []

        async def run(self, task):
            number = int(task.job)
            self.order.append(("start", number))
            yield {"free": True}
            while number < 3 and ("start", number + 1) not in self.order:
                await asyncio.sleep(0.001)
            self.order.append(("end", number))
            yield Outcome(task.prompt, [("a.mp4", b"x")], None, {"total": 0.01}, "", None)

    worker = Overlapping("a")
    assert batch([job(i) for i in range(4)], worker) == {"done": 4}
    assert worker.order[:3] == [("start", 0), ("start", 1), ("end", 0)]
    running = 0
    for what, _ in worker.order:
        running += 1 if what == "start" else -1
        assert running <= 2


@pytest.mark.parametrize("seconds, most", [(0.1, 2), (60.0, 1)])
def test_a_server_gets_the_next_job_ahead_where_jobs_are_short(batch, seconds, most):
    """Two jobs at a time from the second on, whose length is known by then."""

    class Sent(Scripted):
        at_once, open = [], 0

        async def run(self, task):
            self.open += 1
            yield {"began": True}
            for _ in range(20):
                await asyncio.sleep(0.001)
                self.at_once.append(self.open)
            self.open -= 1
            yield {"free": True}
            yield Outcome(task.prompt, [("a.mp4", b"x")], None, {"total": seconds, "running": seconds}, "", None)

    worker = Sent("a")
    assert batch([job(i) for i in range(6)], worker) == {"done": 6}
    assert max(worker.at_once) == most and max(worker.at_once[:20]) == 1


def test_a_worker_lost_while_files_come_gives_back_both_jobs(batch):
    class Losing(Scripted):
        began = lost = 0

        async def run(self, task):
            Losing.began += 1
            yield {"free": True}
            while self.began < 2:
                await asyncio.sleep(0.001)
            if self.lost < 2:
                Losing.lost += 1
                raise WorkerFailed("gone")
            yield Outcome(task.prompt, [("a.mp4", b"x")], None, {"total": 0.01}, "", None)

    assert batch([job(i) for i in range(6)], Losing("a")) == {"done": 6}
    assert Losing.lost == 2

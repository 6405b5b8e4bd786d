"""`cli.py batch`: a table of jobs through one workflow, on running servers or on workers that Ray starts."""

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ..errors import TurboError
from . import table
from .dispatch import Dispatcher, Stopped
from .faults import place
from .job import Job
from .local_server import ServerSettings
from .manifest import DONE, FAILED, RUNNING, Manifest, Record
from .node_info import NodeInfos
from .options import parse_options
from .plan import Planner
from .progress import Bars, JsonLines
from .results import Results
from .server_worker import ServerWorker
from .servers import GRACE_SECONDS, ask_servers
from .sheet import write_sheet
from .text import say, write_line
from .worker import Worker
from .workflow import ATTENTION, Prompt, read_workflow

OK, INCOMPLETE, FAULTY, INTERRUPTED = 0, 1, 2, 130
_Value = TypeVar("_Value")


class _Faulty(Exception):
    """The plan has faults, so that none of its jobs are added to the manifest."""


@dataclass
class _Request:
    """What to make: the rows with their faults, what the command line adds to each, and the workflow."""

    rows: list[table.Row]
    faults: list[tuple[int, str]]
    fixed: Mapping[str, object]
    varied: Mapping[str, Sequence[object]]
    prompt: Prompt


@dataclass
class _Output:
    """Where results and progress go."""

    results: Results
    manifest: Manifest
    stdout: TextIO


def main(arguments: list[str]) -> int:
    """Runs the command: 0 when every job is done, 1 when some failed or are left, 2 when nothing was run because the
    request is faulty, 130 after Ctrl-C or SIGTERM."""
    stdout = sys.stdout
    try:
        options = parse_options(arguments)
        with contextlib.ExitStack() as stack:
            # Ray prints to stdout, which is for machine-readable output.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            return _batch(options, stack, stdout)
    except Stopped as error:
        say(f"batch: {error}")
        return INCOMPLETE
    except TurboError as error:
        say(f"batch: {error}")
        return FAULTY
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("batch: stopped; what is done is kept, --resume goes on with the rest")
        return INTERRUPTED


def _batch(options: argparse.Namespace, stack: contextlib.ExitStack, stdout: TextIO) -> int:
    request = _request(options)
    if options.dry_run:
        if request is None:
            raise TurboError("--dry-run checks a table: give one, or --seeds, --vary, --set or --repeat.")
        workers = _workers(options, stack)
        return asyncio.run(_stoppable(_dry_run(options, request, workers, stdout), workers))
    results = Results(options.out)
    stack.callback(results.close)
    manifest = Manifest(options.out)
    stack.callback(manifest.close)
    workers = _workers(options, stack)
    return asyncio.run(_stoppable(_run(options, request, workers, _Output(results, manifest, stdout)), workers))


def _request(options: argparse.Namespace) -> _Request | None:
    """What the options ask for; None: the manifest's jobs alone. Raises TurboError, also for more than --max-jobs."""
    fixed = dict(map(table.parse_setting, options.set))
    varied: dict[str, Sequence[object]] = dict(map(table.parse_choices, options.vary))
    if options.seeds and (options.repeat > 1 or "seed" in varied):
        raise TurboError("--seeds, --repeat and --vary seed=... all choose the seeds; give one of them.")
    if options.seeds:
        varied["seed"] = table.parse_seeds(options.seeds, options.max_jobs)
    if options.table is None and not (fixed or varied or options.repeat > 1):
        if options.resume:
            return None
        raise TurboError("There is nothing to do: give a table, or --seeds, --vary, --set or --repeat.")
    if options.workflow is None:
        raise TurboError("--workflow is missing: give a workflow in API format.")
    prompt = read_workflow(options.workflow)
    rows, faults = table.read_table(options.table, options.max_jobs) if options.table else ([table.Row(0, {})], [])
    if table.count_jobs(rows, varied, options.repeat) > options.max_jobs:
        raise table.too_many("The table with the options of the command line makes", options.max_jobs)
    return _Request(rows, faults, fixed, varied, prompt)


def _workers(options: argparse.Namespace, stack: contextlib.ExitStack) -> Sequence[Worker]:
    if options.ray is None:
        return [ServerWorker(url) for url in options.server]
    try:
        from .ray_workers import RayCluster
    except ImportError as error:
        raise TurboError(f"--ray needs Ray ({error}); install it with: {sys.executable} -m pip install ray") from error
    comfyui = os.environ.get("COMFYUI_PATH", "")
    settings = ServerSettings(comfyui, options.python or "", tuple(shlex.split(options.comfyui_args or "")))
    return stack.enter_context(RayCluster(options.ray, options.workers)).workers(settings)


async def _stoppable(work: Coroutine[Any, Any, int], workers: Sequence[Worker]) -> int:
    """Awaits `work`, which SIGTERM cancels as Ctrl-C does, and stops the workers at its end."""
    task = asyncio.ensure_future(work)
    with contextlib.suppress(NotImplementedError):  # Windows
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True)


async def _in_thread(work: Callable[[Callable[[], bool]], _Value]) -> _Value:
    """The result of `work`, run in a thread so that the event loop handles signals; its argument tells it to stop."""
    stopped = threading.Event()
    try:
        return await asyncio.to_thread(work, stopped.is_set)
    finally:
        stopped.set()


async def _dry_run(options: argparse.Namespace, request: _Request, workers: Sequence[Worker], stdout: TextIO) -> int:
    infos, _ = await _node_infos(options, request, workers)

    def plan(is_stopped: Callable[[], bool]) -> Planner:
        planner = _planner(options, request, infos, is_stopped)
        for _ in planner.jobs(table.expand(request.rows, request.fixed, request.varied)):
            pass
        return planner

    return _report(await _in_thread(plan), stdout)


async def _run(
    options: argparse.Namespace, request: _Request | None, workers: Sequence[Worker], output: _Output
) -> int:
    if request:
        infos, workers = await _node_infos(options, request, workers)
        planner = await _in_thread(lambda is_stopped: _fill(options, request, infos, output.manifest, is_stopped))
        if planner.faults.count:
            return _report(planner, output.stdout, "Nothing was run.")
        for line in planner.doubles.lines():
            say(line)
    await _work(options, workers, output)
    return _conclude(options, output)


async def _node_infos(
    options: argparse.Namespace, request: _Request, workers: Sequence[Worker]
) -> tuple[dict[str, NodeInfos], Sequence[Worker]]:
    """The node types by server, and the workers that may be used. Raises TurboError where no server answers."""
    types = {node["class_type"] for node in request.prompt.values()} | {ATTENTION}
    known = await ask_servers(workers, types, options.ray is not None, GRACE_SECONDS)
    if not known.infos:
        raise TurboError(known.failures[0])
    for failure in known.failures:
        say(f"batch: {failure}")
    return known.infos, [worker for worker in workers if worker.name not in known.unusable]


def _planner(
    options: argparse.Namespace, request: _Request, infos: dict[str, NodeInfos], is_stopped: Callable[[], bool]
) -> Planner:
    folders = [path.resolve().parent for path in (options.table, options.workflow) if path] + [Path.cwd()]
    if options.ray is not None:
        folders.append(Path(os.environ.get("COMFYUI_PATH", "")) / "input")
    planner = Planner(request.prompt, infos, folders, options.repeat, is_stopped)
    for row, fault in request.faults:
        planner.faults.add(row, fault)
    return planner


def _fill(
    options: argparse.Namespace,
    request: _Request,
    infos: dict[str, NodeInfos],
    manifest: Manifest,
    is_stopped: Callable[[], bool],
) -> Planner:
    """Adds the jobs to the manifest as they are planned, none if there is a fault. Raises TurboError for no job."""
    planner = _planner(options, request, infos, is_stopped)

    def jobs() -> Iterator[Job]:
        yield from planner.jobs(table.expand(request.rows, request.fixed, request.varied))
        if planner.faults.count:
            raise _Faulty
        if not planner.count:
            raise TurboError("There is nothing to do: give a table with rows, or --seeds, --vary, --set or --repeat.")

    with contextlib.suppress(_Faulty):
        manifest.add(jobs())
    return planner


def _report(planner: Planner, stdout: TextIO, *more: str) -> int:
    lines = planner.faults.lines() + planner.doubles.lines()
    lines.append(f"{planner.count} jobs, {planner.faults.count} faults")
    write_line(stdout, "\n".join((*lines, *more)))
    return FAULTY if planner.faults.count else OK


async def _work(options: argparse.Namespace, workers: Sequence[Worker], output: _Output) -> None:
    """Runs the jobs that are not done."""
    results, manifest = output.results, output.manifest
    jobs: list[Job] = []
    running_on: dict[str, str] = {}
    reopened: list[str] = []
    kept = 0
    for record in manifest.records():
        if not record.current:
            continue
        if (stored := results.record(record.job.id)) is not None:
            kept += 1
            if record.state != DONE:
                manifest.adopt(record.job.id, stored.get("seconds"))
            continue
        if record.state in (RUNNING, FAILED, DONE):
            reopened.append(record.job.id)
        if record.state == RUNNING and record.worker is not None:
            running_on[record.job.id] = record.worker
        jobs.append(record.job)
    manifest.reopen(reopened)
    if not jobs:
        return
    names = [worker.name for worker in workers]
    show = JsonLines(output.stdout) if options.json else Bars(len(jobs) + kept, kept, names)
    try:
        show({"event": "batch", "jobs": len(jobs), "kept": kept, "workers": names})
        await Dispatcher(manifest, results, options.retries, options.timeout, show).run(jobs, workers, running_on)
    finally:
        show.close()
        _sheet(output)


def _sheet(output: _Output) -> Path | None:
    records, results = output.manifest.records(), output.results
    files = {r.job.id: list((results.record(r.job.id) or {}).get("files", ())) for r in records if r.state == DONE}
    try:
        return write_sheet(results.folder, records, files)
    except OSError as error:
        say(f"batch: the contact sheet could not be written ({error.strerror})")
        return None


def _conclude(options: argparse.Namespace, output: _Output) -> int:
    current = [record for record in output.manifest.records() if record.current]
    failed = [record for record in current if record.state == FAILED]
    done = sum(record.state == DONE for record in current)
    sheet = _sheet(output)
    if options.json:
        JsonLines(output.stdout)(
            {"event": "end", "jobs": len(current), "done": done, "failed": len(failed), "sheet": str(sheet)}
        )
    else:
        for error, records in _by_error(failed).items():
            say(f"{place(*sorted({r.job.row for r in records}))} {_ids(records)} failed: {error}")
        write_line(output.stdout, f"{done} of {len(current)} jobs done, {len(failed)} failed; see {sheet}")
    return OK if done == len(current) else INCOMPLETE


def _by_error(failed: Sequence[Record]) -> dict[str, list[Record]]:
    """Failed jobs by their error, which may be the same for thousands."""
    found: dict[str, list[Record]] = {}
    for record in failed:
        found.setdefault(str(record.error), []).append(record)
    return found


def _ids(records: Sequence[Record]) -> str:
    return records[0].job.id if len(records) == 1 else f"({len(records):,} jobs, {records[0].job.id} first)"

"""`dev.py batch`: a table of jobs through one workflow, on running servers or on workers that Ray starts."""

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
from pathlib import Path

from ..errors import TurboError
from . import table
from .dispatch import Dispatcher, Stopped
from .local_server import ServerSettings
from .manifest import DONE, FAILED, NAME, RUNNING, Manifest
from .plan import Plan, Planner, refuse
from .progress import Bars, JsonLines
from .results import Results
from .sheet import write_sheet
from .worker import ServerWorker, Worker, WorkerFailed
from .workflow import read_workflow

DEFAULT_SERVER = "http://127.0.0.1:8188"
OK, INCOMPLETE, FAULTY, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str]) -> int:
    """Runs the command: 0 when every job is done, 1 when some failed or are left, 2 when nothing was run because the request is
    faulty, 130 after Ctrl-C or SIGTERM."""
    options = _parser().parse_args(arguments)
    options.stdout = sys.stdout
    try:
        with contextlib.ExitStack() as stack:
            # Ray prints what happens in the cluster; the output is ours alone, for machines to read.
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            return _batch(options, stack)
    except Stopped as error:
        _say(f"batch: {error}")
        return INCOMPLETE
    except TurboError as error:
        _say(f"batch: {error}")
        return FAULTY
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("batch: stopped; what is done is kept, --resume goes on with the rest")
        return INTERRUPTED


def _batch(options: argparse.Namespace, stack: contextlib.ExitStack) -> int:
    _check_where(options)
    if options.resume and not (options.out / NAME).is_file():
        raise TurboError(f"There is no batch in {options.out} to resume; give its folder with --out.")
    request = _request(options)
    results = manifest = None
    if not options.dry_run:
        results = Results(options.out)
        stack.callback(results.close)
        manifest = Manifest(options.out)
        stack.callback(manifest.close)
    return asyncio.run(_run(options, request, results, manifest, _workers(options, stack)))


def _request(options: argparse.Namespace) -> tuple[list[table.Row], list[tuple[int, str]], dict] | None:
    """The rows, the faults of the table and the workflow; None to go on with what the manifest holds."""
    fixed, varied = dict(map(table.parse_setting, options.set)), dict(map(table.parse_choices, options.vary))
    if options.seeds and (options.repeat > 1 or "seed" in varied):
        raise TurboError("--seeds, --repeat and --vary seed=... all choose the seeds; give one of them.")
    if options.seeds:
        varied["seed"] = table.parse_seeds(options.seeds)
    if options.repeat < 1:
        raise TurboError(f"--repeat is {options.repeat}: give 1 or more.")
    if options.table is None and not (fixed or varied or options.repeat > 1):
        if options.resume:
            return None
        raise TurboError("There is nothing to do: give a table, or --seeds, --vary, --set or --repeat.")
    if options.workflow is None:
        raise TurboError("--workflow is missing: give a workflow in API format.")
    rows, faults = table.read_table(options.table) if options.table else ([table.Row(0, {})], [])
    return list(table.expand(rows, fixed, varied)), faults, read_workflow(options.workflow)


def _check_where(options: argparse.Namespace) -> None:
    if options.ray is None and (options.workers or options.comfyui_args or options.python):
        raise TurboError("--workers, --comfyui-args and --python are for servers that --ray starts; add --ray local.")
    if options.ray is not None and options.server:
        raise TurboError("Give --server or --ray, not both.")
    if options.workers is not None and options.workers < 1:
        raise TurboError(f"--workers is {options.workers}: give 1 or more.")


def _workers(options: argparse.Namespace, stack: contextlib.ExitStack) -> list[Worker]:
    if options.ray is None:
        return [ServerWorker(url) for url in dict.fromkeys(map(_address, options.server or [DEFAULT_SERVER]))]
    try:
        from .ray_workers import RayCluster
    except ImportError as error:
        raise TurboError(f"--ray needs Ray ({error}); install it with: {sys.executable} -m pip install ray") from error
    comfyui = os.environ.get("COMFYUI_PATH", "")
    settings = ServerSettings(comfyui, options.python or "", tuple(shlex.split(options.comfyui_args or "")))
    return stack.enter_context(RayCluster(options.ray, options.workers)).workers(settings)


def _address(server: str) -> str:
    """The address of a server, of which each has one spelling: a worker is known by it."""
    scheme, _, rest = server.strip().rpartition("://")
    scheme, rest = scheme.lower() or "http", rest.strip("/")
    if not rest or scheme not in ("http", "https"):
        raise TurboError(f"--server is {server!r}: give an address such as {DEFAULT_SERVER}.")
    return f"{scheme}://{rest}"


async def _run(options, request, results: Results | None, manifest: Manifest | None, workers: list[Worker]) -> int:
    with contextlib.suppress(NotImplementedError):  # Windows
        task = asyncio.current_task()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        if request:
            plan = await _plan(options, *request, workers)
            if plan.faults or options.dry_run:
                return _report(plan, options)
            refuse(plan)
            manifest.add(plan.jobs)
            for row, first in plan.doubles:
                _say(f"row {row} asks for the same video as row {first}; it is made once")
        await _work(options, results, manifest, workers)
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True)
    return _conclude(options, results, manifest)


async def _plan(options, rows, faults, prompt: dict, workers: list[Worker]) -> Plan:
    own = options.ray is not None
    folders = [path.resolve().parent for path in (options.table, options.workflow) if path] + [Path.cwd()]
    if own:
        folders.append(Path(os.environ.get("COMFYUI_PATH", "")) / "input")
    infos, failures = await _object_infos(workers, only_one=own)
    if not infos:
        raise TurboError(failures[0])
    for failure in failures:
        _say(f"batch: {failure}")
    plan = Planner(prompt, infos, folders, options.repeat).plan(rows)
    plan.faults = sorted(faults + plan.faults, key=lambda fault: fault[0])
    return plan


async def _object_infos(workers: list[Worker], only_one: bool) -> tuple[dict[str, dict], list[str]]:
    """What the servers know, by worker; of servers that Ray starts the first that is up speaks for all."""
    infos, failures = {}, []

    async def ask(worker: Worker) -> None:
        try:
            await worker.start()
            infos[worker.name] = await worker.object_info()
        except WorkerFailed as error:
            failures.append(str(error))

    asking = [asyncio.ensure_future(ask(worker)) for worker in workers]
    try:
        for answered in asyncio.as_completed(asking):
            await answered
            if infos and only_one:
                break
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return infos, failures


def _report(plan: Plan, options: argparse.Namespace) -> int:
    lines = [f"{_place(row)}: {fault}" for row, fault in plan.faults]
    lines += [f"row {row}: the same video as row {first}; it is made once" for row, first in plan.doubles]
    lines.append(f"{len(plan.jobs)} jobs, {len(plan.faults)} faults")
    if plan.faults and not options.dry_run:
        lines.append("Nothing was run.")
    options.stdout.write("\n".join(lines) + "\n")
    return FAULTY if plan.faults else OK


def _place(row: int) -> str:
    return f"row {row}" if row else "command line"


async def _work(options, results: Results, manifest: Manifest, workers: list[Worker]) -> None:
    """Runs what is not done."""
    jobs, homes, reopened, kept = [], {}, [], 0
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
        if record.state == RUNNING:
            homes[record.job.id] = record.worker
        jobs.append(record.job)
    manifest.reopen(reopened)
    if not jobs:
        return
    names = [worker.name for worker in workers]
    show = JsonLines(options.stdout) if options.json else Bars(len(jobs) + kept, kept, names)
    try:
        show({"event": "batch", "jobs": len(jobs), "kept": kept, "workers": names})
        dispatcher = Dispatcher(manifest, results, options.retries, options.timeout or None, show)
        await dispatcher.run(jobs, workers, homes)
    finally:
        show.close()
        _sheet(results, manifest)


def _sheet(results: Results, manifest: Manifest) -> Path | None:
    records = manifest.records()
    files = {r.job.id: list((results.record(r.job.id) or {}).get("files", ())) for r in records if r.state == DONE}
    try:
        return write_sheet(results.folder, records, files)
    except OSError as error:
        _say(f"batch: the contact sheet could not be written ({error.strerror})")
        return None


def _conclude(options, results: Results, manifest: Manifest) -> int:
    current = [record for record in manifest.records() if record.current]
    failed = [record for record in current if record.state == FAILED]
    done = sum(record.state == DONE for record in current)
    sheet = _sheet(results, manifest)
    if options.json:
        JsonLines(options.stdout)(
            {"event": "end", "jobs": len(current), "done": done, "failed": len(failed), "sheet": str(sheet)}
        )
    else:
        for record in failed:
            _say(f"{_place(record.job.row)} {record.job.id} failed: {record.error}")
        options.stdout.write(f"{done} of {len(current)} jobs done, {len(failed)} failed; see {sheet}\n")
    return OK if done == len(current) else INCOMPLETE


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dev.py batch",
        description="Runs a workflow in API format once for every row of a table. Columns: prompt, negative, image, seed, width, "
        "height, length, topk, or NODE.INPUT with a node's id or title. A second start skips what is done.",
    )
    add = parser.add_argument
    add(
        "table",
        nargs="?",
        type=Path,
        help="a .csv with a header, or a .jsonl with an object a line (a list in it is a choice)",
    )
    add("--workflow", type=Path, metavar="FILE", help="the workflow in API format")
    add("--out", type=Path, required=True, metavar="DIR", help="where results, manifest and contact sheet go")
    add("--server", action="append", metavar="URL", help=f"a running ComfyUI; may be repeated ({DEFAULT_SERVER})")
    add("--ray", metavar="WHERE", help="start a server per GPU with Ray: local, auto, or a cluster's address")
    add(
        "--workers", type=int, metavar="N", help="how many servers Ray starts (one per GPU; needed where there is none)"
    )
    add("--comfyui-args", metavar="ARGS", help="further arguments of the servers that Ray starts, as one word")
    add("--python", metavar="PATH", help="the Python of those servers (the one that runs the Ray worker)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a value for every row that lacks it")
    add(
        "--vary",
        action="append",
        default=[],
        metavar="NAME=V1,V2",
        help="every row once with each value (or a JSON list)",
    )
    add("--seeds", metavar="1-20", help="every row once with each seed")
    add("--repeat", type=int, default=1, metavar="N", help="every row N times, each with the next seed")
    add(
        "--retries",
        type=int,
        default=2,
        metavar="N",
        help="how often a job that failed is tried again, elsewhere if possible (2)",
    )
    add(
        "--timeout",
        type=float,
        default=7200,
        metavar="SECONDS",
        help="the longest an attempt may take; 0: no limit (7200)",
    )
    add("--dry-run", action="store_true", help="check every row against the server and run nothing")
    add("--resume", action="store_true", help="go on with the batch in DIR; table and workflow may be left out")
    add("--json", action="store_true", help="one JSON object a line instead of bars")
    return parser

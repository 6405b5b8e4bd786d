"""`dev.py bench batch`: 40 jobs over 2 Ray workers with one killed twice, the overhead over queueing by hand, how
throughput grows with workers, simulated with the real dispatcher, manifest and folder of results from recorded timings,
and what a plan of 10,000 rows takes."""

import argparse
import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from td_pack.tests.support.server import ROOT, ComfyServer, install

JOBS = 40
OVERHEAD = 1.05
WORKERS = (1, 8, 64, 512)
PER_WORKER = 4  # jobs of each simulated worker
PLAN_ROWS, PLAN_SECONDS, PLAN_MB = 10_000, 5.0, 100.0  # seconds of processor time
# A small process that starts another and prints its peak: Linux counts the memory of the process that forked as well.
MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)
sys.exit(code)
"""
PARTS = ("killed", "overhead", "simulation", "plan")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench batch", description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"jobs of the first two ({JOBS})")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs that the overhead is the median of (3)")
    parser.add_argument(
        "--seconds",
        type=float,
        nargs="+",
        help="seconds of a simulated job (default: recorded by the overhead's runs, else 1.2)",
    )
    options = parser.parse_args(arguments)
    within, seconds = True, options.seconds
    with tempfile.TemporaryDirectory(prefix="turbodiffusion-bench-") as name:
        base = make_base(Path(name))
        if "killed" in options.only:
            within &= killed(base, options.jobs)
        if "overhead" in options.only:
            ratio, recorded = overhead(base, options.jobs, options.rounds)
            within &= ratio < OVERHEAD
            seconds = seconds or recorded
        if "simulation" in options.only:
            within &= simulation(Path(name), seconds or [1.2])
        if "plan" in options.only:
            within &= plan(base)
    return 0 if within else 1


def make_base(folder: Path) -> Path:
    """A ComfyUI base directory with tiny models, the pack, and the tiny text-to-video workflow."""
    from td_pack.tests.support import checkpoints, workflows
    from td_pack.tests.support.host import load_host
    from td_pack.tests.support.workflows import TINY_FILES

    load_host()
    checkpoints.write_models(folder / "models")
    install(ROOT, folder / "custom_nodes" / "pack")
    install(ROOT / "tests" / "server_nodes", folder / "custom_nodes" / "test_nodes")
    prompt = workflows.fit(
        workflows.load("TurboWan2.1-T2V-1.3B-480P"), models=TINY_FILES, width=64, height=64, length=9
    )
    (folder / "workflow.json").write_text(json.dumps(prompt))
    return folder


def command(base: Path, out: Path, jobs: int, *where: str) -> list[str]:
    options = ["--workflow", base / "workflow.json", "--out", out, "--seeds", f"1-{jobs}", "--json", *where]
    return [str(part) for part in (sys.executable, ROOT / "dev.py", "--here", "batch", *options)]


def killed(base: Path, jobs: int) -> bool:
    """The jobs over two Ray workers; after a quarter and after half of them the worker that reports progress is
    killed."""
    where = ("--ray", "local", "--workers", "2", "--comfyui-args", f"--base-directory {base}")
    kills, done, pids, start = 0, [], {}, time.monotonic()
    with subprocess.Popen(command(base, base / "killed", jobs, *where), stdout=subprocess.PIPE, text=True) as process:
        for event in map(json.loads, process.stdout):
            if "pid" in event:
                pids[event["worker"]] = event["pid"]
            if event["event"] == "done":
                done.append(event["job"])
            if event["event"] == "progress" and kills < 2 and len(done) >= jobs * (kills + 1) // 4:
                os.kill(pids[event["worker"]], signal.SIGKILL)
                kills += 1
    videos = len(list((base / "killed").glob("*/video.mp4")))
    print(
        f"{jobs} jobs, 2 workers, {kills} kills: {videos} videos, {len(done) - len(set(done))} doubled, exit code "
        f"{process.returncode}, {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return (videos, len(set(done)), len(done), process.returncode, kills) == (jobs, jobs, jobs, 0, 2)


def overhead(base: Path, jobs: int, rounds: int) -> tuple[float, list[float]]:
    """Seconds for the jobs through one server: queued all at once by hand, and by the batch tool, from the first prompt
    to the last end, in turns; the median of the ratios, and the seconds of each job."""
    prompt, ratios, recorded = json.loads((base / "workflow.json").read_text()), [], []
    from td_pack.tests.support import checkpoints

    checkpoints.write_models(base / "server" / "models")
    with ComfyServer(base / "server", test_nodes=True) as server:
        server.client.run(prompt)
        for i in range(rounds):
            by_hand = queued_by_hand(server, prompt, range(1000 * i + 100, 1000 * i + 100 + jobs))
            seconds = by_tool(base, server, 1000 * i + 500, jobs, recorded)
            ratios.append(seconds / by_hand)
            print(f"by hand {by_hand:.2f} s, by the tool {seconds:.2f} s: {ratios[-1]:.3f}", flush=True)
    ratio = sorted(ratios)[len(ratios) // 2]
    print(f"overhead over queueing by hand: {100 * (ratio - 1):+.1f} %", flush=True)
    return ratio, recorded


def queued_by_hand(server: ComfyServer, prompt: dict, seeds: range) -> float:
    ids, start = [], time.monotonic()
    for seed in seeds:
        prompt["7"]["inputs"]["seed"] = seed
        ids.append(server.client.queue(prompt))
    while ids[-1] not in json.loads(server.client.get(f"/history/{ids[-1]}")):
        time.sleep(0.05)
    return time.monotonic() - start


def by_tool(base: Path, server: ComfyServer, first: int, jobs: int, recorded: list[float]) -> float:
    out = base / f"tool-{first}"
    run = command(base, out, jobs, "--server", server.url)
    run[run.index("--seeds") + 1] = f"{first}-{first + jobs - 1}"
    events = [
        json.loads(line)
        for line in subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    ]
    recorded += [event["seconds"] for event in events if event["event"] == "done"]
    times = [event["time"] for event in events if event["event"] in ("start", "done")]
    return max(times) - min(times)


def simulation(folder: Path, seconds: list[float]) -> bool:
    """Workers that wait as long as recorded jobs took and answer with a file of a real size, in real time, so that the
    driver's own work (choosing, manifest, writing with fsync) is what it is. Its limit is the processor time it spends
    on a job."""
    print(
        "\n| workers | jobs | seconds | jobs a second | of linear | driver's processor time a job "
        "|\n|---|---|---|---|---|---|"
    )
    mean, rates, cost = sum(seconds) / len(seconds), {}, 0.0
    for workers in WORKERS:
        jobs = workers * PER_WORKER
        elapsed, cost = asyncio.run(simulated(folder / f"simulated-{workers}", workers, jobs, seconds))
        rates[workers] = jobs / elapsed
        linear = rates[workers] / (workers / mean)
        print(
            f"| {workers} | {jobs} | {elapsed:.1f} | {rates[workers]:.2f} | {100 * linear:.0f} % | {1000 * cost:.1f} "
            "ms |",
            flush=True,
        )
    limit = max(rates.values())
    if rates[WORKERS[-1]] * mean > 0.8 * WORKERS[-1]:
        print(
            f"\nThe driver is no limit at {WORKERS[-1]} workers; its processor time would be at {1 / cost:.0f} jobs "
            "a second."
        )
    else:
        print(
            f"\nThe driver is the limit at {limit:.0f} jobs a second: {limit * mean:.0f} workers with these jobs of "
            f"{mean:.1f} s, "
            f"{limit * 60:.0f} with jobs of a minute."
        )
    return rates[64] * mean / 64 > 0.8


def plan(base: Path) -> bool:
    """A dry run of a table: its processor time and its peak of memory."""
    table = base / "jobs.csv"
    rows = (
        f'"A red fox, number {i}, trots through a birch forest, {"golden leaves, " * 8}low sun",{i}'
        for i in range(PLAN_ROWS)
    )
    table.write_text("\n".join(("prompt,seed", *rows)))
    from td_pack.tests.support import checkpoints

    checkpoints.write_models(base / "planned" / "models")
    with ComfyServer(base / "planned", test_nodes=True) as server:
        words = [
            table,
            "--workflow",
            base / "workflow.json",
            "--out",
            base / "plan",
            "--server",
            server.url,
            "--dry-run",
        ]
        start = time.monotonic()
        command = [sys.executable, "-c", MEASURED, sys.executable, ROOT / "dev.py", "--here", "batch", *words]
        lines = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        seconds = time.monotonic() - start
    megabytes, used = map(float, lines[-1].split())
    print(
        f"plan of {PLAN_ROWS} rows: {lines[-2]}; {seconds:.1f} s, {used:.1f} s of processor time, {megabytes:.0f} MB "
        "at the most"
    )
    return used <= PLAN_SECONDS and megabytes <= PLAN_MB


async def simulated(out: Path, workers: int, jobs: int, seconds: list[float]) -> tuple[float, float]:
    from td_pack.turbo_core.batch.dispatch import Dispatcher
    from td_pack.turbo_core.batch.job import Job
    from td_pack.turbo_core.batch.manifest import Manifest
    from td_pack.turbo_core.batch.results import Results
    from td_pack.turbo_core.batch.worker import Outcome

    class Simulated:
        def __init__(self, name: str):
            self.name = name

        async def start(self) -> dict:
            return {}

        async def run(self, task):
            await asyncio.sleep(seconds[int(task.job) % len(seconds)])
            yield Outcome(task.prompt, [("a.mp4", bytes(500_000))], b"", {"total": 1.0}, "log")

        async def reset(self) -> None: ...

        async def stop(self) -> None: ...

    listed = [Job(f"{i:020}", i, {"1": {"class_type": "X", "inputs": {"model_name": "a.pth"}}}) for i in range(jobs)]
    results, manifest = Results(out), Manifest(out)
    manifest.add(listed)
    before, start = processor_seconds(), time.monotonic()
    await Dispatcher(manifest, results, 0, None, lambda event: None).run(
        listed, [Simulated(str(i)) for i in range(workers)], {}
    )
    elapsed, cost = time.monotonic() - start, (processor_seconds() - before) / jobs
    manifest.close()
    results.close()
    return elapsed, cost


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

"""`dev.py bench soak`: mixed prompts to one server, ten clients at once, and a batch whose server and whose workers are
killed: memory, descriptors, threads and files that stay, and how many jobs are lost."""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from td_pack.tests.support.server import ROOT, ComfyServer

PARTS = ("mixed", "clients", "kills")
PROMPTS, CLIENTS, MINUTES, JOBS = 500, 10, 5.0, 40
ROWS = 5  # of the table of the mixed prompts


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench soak", description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"mixed prompts, one by one ({PROMPTS})")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"clients at once ({CLIENTS})")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for which they go on ({MINUTES:g})")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"jobs of each batch with kills ({JOBS})")
    options = parser.parse_args(arguments)
    from .batch import killed, make_base

    lost = 0
    print(f"load of the machine at the start: {psutil.getloadavg()[0]:.1f} on {psutil.cpu_count()} cores", flush=True)
    with tempfile.TemporaryDirectory(prefix="turbodiffusion-soak-") as name:
        base = make_base(Path(name))
        with server_at(base / "soak") as server:
            if "mixed" in options.only:
                lost += mixed(server, options.prompts)
            if "clients" in options.only:
                lost += clients(server, options.clients, 60 * options.minutes)
        if "kills" in options.only:
            with server_at(base / "killed-server") as server:
                lost += server_killed(base, server, options.jobs)
            lost += not killed(base, options.jobs)
    return 0 if not lost else 1


def server_at(base: Path) -> ComfyServer:
    from td_pack.tests.support import checkpoints

    checkpoints.write_models(base / "models")
    return ComfyServer(base, test_nodes=True)


def kinds() -> dict[str, tuple[str, Callable[[int], dict]]]:
    """By name: how such a prompt ends, and the prompt of a number."""
    from td_pack.tests.nodes.test_replacements import i2v
    from td_pack.tests.support import checkpoints
    from td_pack.tests.support.jobs import attention, camera_path, empty, node, sampled, t2v_job

    def sample(seed: int, **more) -> dict:
        small = sampled(seed, 1, high=["attention", 0], **more)
        return t2v_job("soak", attention=attention(), latent=empty(16, 16, 1), sample=small)

    def video(seed: int) -> dict:
        decode = node("TurboDiffusionVAEDecodeVideo", samples=["sample", 0], vae=["vae", 0], fps=16.0)
        kept = node("SaveVideo", video=["video", 0], filename_prefix="soak", format="auto", codec="auto")
        return sample(seed) | {
            "vae": node("VAELoader", vae_name=checkpoints.VAE),
            "video": decode,
            "save": kept,
        }

    def camera(seed: int) -> dict:
        embed = node("TurboDiffusionCameraEmbed", camera=["path", 0], width=64, height=64, control="cam")
        shown = node("PreviewImage", images=["camera", 1])
        return {"path": camera_path(actions=f"w-{4 + seed % 77}"), "camera": embed, "shown": shown}

    return {
        "sampled": ("ended", sample),
        "video": ("ended", video),
        "old workflow": ("ended", lambda seed: i2v(num_steps=1, num_frames=1, seed=seed)),
        "camera": ("ended", camera),
        "interrupted": ("interrupted", lambda seed: t2v_job("soak", sample=sampled(seed, 16, mode="ode"))),
        "refused": ("refused", lambda seed: sample(seed) | {"sample": sampled(seed, high=5)}),
        "failed": ("failed", lambda seed: sample(seed, cfg_high=math.nan)),
    }


def end_of(client, prompt: dict, interrupt: bool) -> str:
    """Runs a prompt and says how it ended."""
    from td_pack.tests.support.client import PromptRejected

    def on_event(kind: str, _: dict) -> None:
        if interrupt and kind == "progress":
            client.interrupt()

    try:
        result = client.run(prompt, on_event, timeout=600, check=False)
    except PromptRejected:
        return "refused"
    return "interrupted" if result.interrupted else "failed" if result.error else "ended"


def state(server: ComfyServer) -> dict[str, float]:
    """What of the server's process and folders may grow."""
    process, files = psutil.Process(server.pid), [path for path in server.base.rglob("*") if path.is_file()]
    return {
        "MB": process.memory_info().rss / 1e6,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "temp files": sum(path.is_relative_to(server.base / "temp") for path in files),
        "partial files": sum(path.suffix == ".partial" for path in files),
    }


def mixed(server: ComfyServer, count: int) -> int:
    """The prompts one after the other; returns how many did not end as they should."""
    prompts, wrong, ran = kinds(), 0, Counter()
    print("\n| prompts | MB | descriptors | threads | temp files | partial files |\n|---|---|---|---|---|---|")
    for i in range(count + 1):
        if i % max(count // ROWS, 1) == 0:
            print("|", i, "|", " | ".join(f"{value:.0f}" for value in state(server).values()), "|", flush=True)
        name = list(prompts)[i % len(prompts)]
        expected, make = prompts[name]
        ended = end_of(server.client, make(i), name == "interrupted")
        ran[ended] += 1
        if ended != expected:
            wrong += 1
            print(f"prompt {i}, {name}: {ended} instead of {expected}", flush=True)
    print(f"\n{dict(ran)}, {wrong} otherwise than they should", flush=True)
    return wrong


def clients(server: ComfyServer, count: int, seconds: float) -> int:
    """Clients that each send the next prompt when one ended; returns how many did not end as they should."""
    from td_pack.tests.support.client import ComfyClient
    from td_pack.turbo_core.batch.client import REQUEST_ERRORS, ServerLost, TimedOut

    until, before = time.monotonic() + seconds, state(server)
    prompts = {name: made for name, made in kinds().items() if name != "interrupted"}  # it would stop another's prompt

    def send(number: int) -> Counter[str]:
        client, ran, i = ComfyClient(server.url), Counter(), number
        while time.monotonic() < until:
            expected, make = list(prompts.values())[i % len(prompts)]
            try:
                ended = end_of(client, make(1000 * number + i), False)
            except (ServerLost, TimedOut, *REQUEST_ERRORS) as error:
                print(f"client {number}: {type(error).__name__}: {error}", flush=True)
                ended = "lost"
            ran[ended if ended == expected else f"{ended} instead of {expected}"] += 1
            i += 1
        return ran

    with ThreadPoolExecutor(count) as threads:
        ran = sum(threads.map(send, range(count)), Counter())
    after = state(server)
    grown = ", ".join(f"{name} {before[name]:.0f} to {after[name]:.0f}" for name in before)
    queue = json.loads(server.client.get("/queue"))
    left = len(queue["queue_running"]) + len(queue["queue_pending"])
    print(f"\n{count} clients for {seconds:.0f} s: {dict(ran)}, {left} left in the queue; {grown}", flush=True)
    return left + sum(number for how, number in ran.items() if "instead" in how)


def server_killed(base: Path, server: ComfyServer, jobs: int) -> int:
    """A batch on a server that is killed after a quarter and after half of the jobs, and started again; and what
    `--resume` adds. Returns how many jobs have no video."""
    from .batch import command

    out, kills, done, start = base / "server-killed", 0, 0, time.monotonic()
    with subprocess.Popen(
        command(base, out, jobs, "--server", server.url), stdout=subprocess.PIPE, text=True
    ) as process:
        for event in map(json.loads, process.stdout):
            done += event["event"] == "done"
            if event["event"] == "progress" and kills < 2 and done >= jobs * (kills + 1) // 4:
                server.kill()
                server.stop()
                server.__enter__()
                kills += 1
    first = len(list(out.glob("*/video.mp4")))
    resume = [sys.executable, ROOT / "dev.py", "--here", "batch", "--resume", "--out", out, "--server", server.url]
    code = subprocess.run([*map(str, resume)], stdout=subprocess.DEVNULL).returncode
    videos = len(list(out.glob("*/video.mp4")))
    print(
        f"\n{jobs} jobs on a server killed {kills} times: {first} videos at the end (exit code {process.returncode}), "
        f"{videos} after --resume (exit code {code}), {time.monotonic() - start:.0f} s",
        flush=True,
    )
    return jobs - videos

"""`dev.py bench switch`: what the switch from the high to the low expert costs while the low one's file is not in
memory.

Three ways, each in a new process: `warm` has the file in the page cache, `cold` dropped it and does not read ahead,
`ahead` dropped it and does. What a way adds is the time from the end of the last high step to the end of the first low
step, above that of `warm`; the ratio is to reading the file alone. The bytes fetched from the disk in that time do not
depend on what else the machine does: they are the part of the reading that is left to the switch, and decide."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .memory import EXPERT, GB

WAYS = ("warm", "cold", "ahead")
LIMIT = 0.05  # of the low expert's file


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench switch", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the files go for the while (default: the temporary folder)")
    parser.add_argument("--layers", type=int, default=4, help="of each expert, of 40 (4, which is 1.6 GB)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way, of which the quickest counts (3)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        way, *paths = options.measure
        print(json.dumps(measure(way, *map(Path, paths))))
        return 0
    from td_pack.tests.bench.full_size import write_expert

    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as name:
        needed, free = 2 * 0.4 * options.layers + 1, shutil.disk_usage(name).free / GB
        if free < needed:
            print(
                f"bench switch needs {needed:.0f} GB of disk and {name} has {free:.0f}: give another place with --dir."
            )
            return 1
        size = EXPERT | {"layers": options.layers, "in_channels": 16}
        files = [
            write_expert(Path(name) / f"{expert}.safetensors", seed, **size)
            for seed, expert in enumerate(("high", "low"))
        ]
        os.sync()  # or writing them to the disk goes on beside the first runs
        alone = min(read_alone(files[1]) for _ in range(options.repeat))
        runs = {way: [measured(way, files) for _ in range(options.repeat)] for way in WAYS}
        length = files[1].stat().st_size
    print(f"Each expert {length / GB:.2f} GB; reading the low one alone: {alone:.2f} s.\n")
    print(
        "| low expert's file | high step | switch and first low step | added, to reading alone | fetched in that "
        "time |\n|---|---|---|---|---|"
    )
    best = {way: min(of, key=lambda run: run["seconds"]) for way, of in runs.items()}
    for way, run in best.items():
        added = (run["seconds"] - best["warm"]["seconds"]) / alone
        print(f"| {way} | {run['high']:.2f} s | {run['seconds']:.2f} s | {added:.1%} | {run['fetched'] / length:.1%} |")
    return 0 if best["ahead"]["fetched"] < LIMIT * length else 1


def drop(path: Path) -> None:
    """Takes a file out of the page cache (Linux); pages that a process has mapped stay."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    """Brings a file into the page cache."""
    buffer = bytearray(4 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_alone(path: Path) -> float:
    """Seconds to read a file from the disk."""
    drop(path)
    start = time.perf_counter()
    read(path)
    return time.perf_counter() - start


def measured(way: str, files: list[Path]) -> dict:
    """Runs `measure` in a new process."""
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    command = [sys.executable, str(dev), "--here", "bench", "switch", "--measure", way, *map(str, files)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def measure(way: str, high_path: Path, low_path: Path) -> dict:
    """One run of 4 steps, two of each expert: seconds of the last high step, and of the switch with the first low step,
    and the bytes that this process fetched from the disk in the latter."""
    from td_pack.tests.support.host import load_host

    load_host()
    import psutil
    import torch
    from comfy.patcher_extension import WrappersMP
    from td_pack.turbo_core.host.load import load_model
    from td_pack.turbo_core.host.run import run

    high, low = load_model(str(high_path)), load_model(str(low_path))
    read(high_path)
    if way == "warm":
        read(low_path)
    else:
        drop(low_path)
    if way == "cold":
        low.model.source = low_path.with_name("nothing to read ahead")
    fetched = []

    def count(executor, *args, **kwargs):
        before = psutil.Process().io_counters().read_bytes
        result = executor(*args, **kwargs)
        fetched.append(psutil.Process().io_counters().read_bytes - before)
        return result

    low.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    text = [[torch.zeros(1, 8, 4096), {}]]
    latent = {"samples": torch.zeros(1, 16, 2, 8, 8)}
    run(high, text, latent, 0, 4, 200, 0.9, "sde", "cpu", low)
    record = high.model.last_run
    last_high, first_low = record.passes[1], record.passes[2]
    return {
        "high": last_high.ended - last_high.began,
        "seconds": first_low.ended - last_high.ended,
        "fetched": fetched[0],
    }

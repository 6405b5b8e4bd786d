"""`dev.py bench load`: time and anonymous memory of loading full-size int8 and NF4 experts, from random files of the
real layout.

Anonymous memory (RssAnon) is what can push a machine into swapping; pages mapped from the file are given back by the
kernel when something else needs them."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .memory import EXPERT, GB, MemoryWatch

NEEDED = {"int8": 45, "nf4": 11, None: 45}  # GB of disk: int8 two experts as .safetensors and one as .pth, NF4 one
LIMITS = {1: 2.0, 2: 4.0}  # GB of anonymous memory by number of experts


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench load", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the files go for the while (default: the temporary folder)")
    parser.add_argument("--only", choices=("int8", "nf4"), help="measure one kind of file")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as folder:
        free = shutil.disk_usage(folder).free / GB
        needed = NEEDED[options.only]
        if free < needed:
            print(f"bench load needs {needed} GB of disk and {folder} has {free:.0f}: give another place with --dir.")
            return 1
        rows = [row for kind, run in RUNS.items() if options.only in (None, kind) for row in run(Path(folder))]
    print("| files | size | seconds | anonymous memory, peak | file-backed, at the end |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['files']} | {row['size']:.1f} GB | {row['seconds']:.1f} | {row['anonymous']:.2f} GB | "
            f"{row['mapped']:.1f} GB |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["anonymous"] < LIMITS[row["count"]] for row in rows) else 1


def run_int8(folder: Path) -> list[dict]:
    from td_pack.tests.bench.full_size import write_expert, write_pth_copy

    high, low = (
        write_expert(folder / f"{name}.safetensors", seed, **EXPERT) for seed, name in enumerate(("high", "low"))
    )
    pth = write_pth_copy(high, folder / "high.pth")
    rows = [measured(paths) for paths in ([high], [pth], [high, low])]
    for path in (high, low, pth):
        path.unlink()
    return rows


def run_nf4(folder: Path) -> list[dict]:
    from td_pack.tests.bench.full_size import write_nf4_expert

    sizes = {name: size for name, size in EXPERT.items() if name != "in_channels"}
    return [measured([write_nf4_expert(folder / "lingbot-high-nf4.safetensors", 2, **sizes)])]


RUNS = {"int8": run_int8, "nf4": run_nf4}


def measured(paths: list[Path]) -> dict:
    """Runs `measure` in a new process."""
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    command = [sys.executable, str(dev), "--here", "bench", "load", "--measure", *map(str, paths)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    size = sum(path.stat().st_size for path in paths) / GB
    return {"files": " + ".join(path.name for path in paths), "count": len(paths), "size": size, **json.loads(answer)}


def measure(paths: list[Path]) -> dict:
    """Loads the files with the node's loader in this process: seconds, peak anonymous and final file-backed GB above
    start."""
    from td_pack.tests.support.host import load_host

    load_host()
    from td_pack.turbo_core.host.load import load_model

    with MemoryWatch() as watch:
        models = [load_model(str(path)) for path in paths]
    assert len(models) == len(paths)
    return {"seconds": watch.seconds, "anonymous": watch.anonymous, "mapped": watch.mapped}

"""`dev.py bench load`: time and anonymous memory of loading full-size int8 experts, from random files of the real layout.

Anonymous memory (RssAnon) is what can push a machine into swapping; pages mapped from the file are given back by the kernel
when something else needs them."""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .memory import EXPERT, GB, MemoryWatch

NEEDED = 45  # GB of disk: two experts as .safetensors and one as .pth
LIMITS = {1: 2.0, 2: 4.0}  # GB of anonymous memory by number of experts


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench load", description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, help="where the files go for the while (default: the temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as folder:
        free = shutil.disk_usage(folder).free / GB
        if free < NEEDED:
            print(f"bench load needs {NEEDED} GB of disk and {folder} has {free:.0f}: give another place with --dir.")
            return 1
        rows = run(Path(folder))
    print("| files | size | seconds | anonymous memory, peak | file-backed, at the end |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['files']} | {row['size']:.1f} GB | {row['seconds']:.1f} | {row['anonymous']:.2f} GB | {row['mapped']:.1f} GB |"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["anonymous"] < LIMITS[row["count"]] for row in rows) else 1


def run(folder: Path) -> list[dict]:
    from td_pack.tests.support.full_size import write_expert, write_pth_copy

    high, low = (
        write_expert(folder / f"{name}.safetensors", seed, **EXPERT) for seed, name in enumerate(("high", "low"))
    )
    pth = write_pth_copy(high, folder / "high.pth")
    return [measured(paths) for paths in ([high], [pth], [high, low])]


def measured(paths: list[Path]) -> dict:
    """`measure` in a process of its own."""
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    command = [sys.executable, str(dev), "--here", "bench", "load", "--measure", *map(str, paths)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    size = sum(path.stat().st_size for path in paths) / GB
    return {"files": " + ".join(path.name for path in paths), "count": len(paths), "size": size, **json.loads(answer)}


def measure(paths: list[Path]) -> dict:
    """Loads the files with the node's loader in this process: seconds, peak anonymous and final file-backed GB above start."""
    from td_pack.tests.support.host import load_host

    load_host()
    from td_pack.turbo_core.host.load import load_model

    with MemoryWatch() as watch:
        models = [load_model(str(path)) for path in paths]
    assert len(models) == len(paths)
    return {"seconds": watch.seconds, "anonymous": watch.anonymous, "mapped": watch.mapped}

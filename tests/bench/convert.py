"""`dev.py bench convert`: time and anonymous memory of converting a full-size int8 `.pth`, a random file of the real
layout."""

import argparse
import shutil
import tempfile
from pathlib import Path

from .memory import EXPERT, GB, MemoryWatch

NEEDED = 32  # GB of disk: the source and one result at a time
LIMIT = 2.0  # GB of anonymous memory


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench convert", description=__doc__)
    parser.add_argument("--dir", type=Path, help="where the files go for the while (default: the temporary folder)")
    parser.add_argument("--weights", nargs="+", default=["keep"], help="kinds of weights to write (keep)")
    options = parser.parse_args(arguments)
    from td_pack.tests.bench.full_size import write_expert, write_pth_copy
    from td_pack.turbo_core.convert.convert import Request, convert

    within = True
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free / GB
        if free < NEEDED:
            print(
                f"bench convert needs {NEEDED} GB of disk and {folder} has {free:.0f}: give another place with --dir."
            )
            return 1
        mapped = write_expert(folder / "source.safetensors", 0, **EXPERT)
        source = write_pth_copy(mapped, folder / "source.pth")
        mapped.unlink()
        print("| weights | source | result | seconds | anonymous memory, peak |\n|---|---|---|---|---|")
        for weights in options.weights:
            result = folder / f"{weights}.safetensors"
            with MemoryWatch() as watch:
                convert(Request(source, result, weights))
            sizes = " | ".join(f"{path.stat().st_size / GB:.1f} GB" for path in (source, result))
            print(f"| {weights} | {sizes} | {watch.seconds:.0f} | {watch.anonymous:.2f} GB |", flush=True)
            within &= watch.anonymous < LIMIT
            result.unlink()
    return 0 if within else 1

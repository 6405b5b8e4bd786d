"""`dev.py bench step`: whole steps of Wan models as users run them, beside ComfyUI's stock model on the same GPU.

The weights are random and drawn on the device; nothing is downloaded. It also runs one image-to-video job by phase. The
most valuable comes first and the JSON file is written again after each row, so that a run that is stopped keeps what it
has measured. `--rehearse` runs every line of it on tiny shapes, also without a GPU: its figures mean nothing.

For a machine without a network, `--bundle comfyui.tar.gz` packs ComfyUI's source where there is one. There:
`tar xf comfyui.tar.gz && COMFYUI_PATH=ComfyUI python dev.py --here bench step`. It names the packages that its Python
lacks, whose wheels must travel too."""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

BUDGET = 540.0
PARTS = ("480p", "720p", "job")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench step", description=__doc__)
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="time allowed (default 540)")
    parser.add_argument("--json", type=Path, default=Path("bench-step.json"), help="where the figures go")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which parts, in their order (all)")
    parser.add_argument("--dir", type=Path, help="where the files of the models go (default: the temporary folder)")
    parser.add_argument("--bundle", type=Path, metavar="FILE", help="pack ComfyUI's source for a machine without any")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny shapes, also on a CPU: checks this program, measures nothing"
    )
    options = parser.parse_args(arguments)
    from ...support.host import comfyui_path, load_host
    from . import bundle

    comfyui = Path(comfyui_path())
    if options.bundle:
        print(f"{bundle.write(options.bundle, comfyui)}: {options.bundle.stat().st_size / 1e6:.1f} MB")
        return 0
    missing = bundle.missing_packages(comfyui)
    if missing:
        print(f"bench step: this Python lacks {', '.join(missing)}: install them, or their wheels.", file=sys.stderr)
        return 2
    began = time.monotonic()
    import torch

    if not torch.cuda.is_available() and not options.rehearse:
        print(
            "bench step needs a GPU that torch can use; --rehearse runs it without one, measuring nothing.",
            file=sys.stderr,
        )
        return 2
    load_host()
    import comfy.model_management

    device = comfy.model_management.get_torch_device()
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="turbodiffusion-bench-") as folder:
        left = options.budget - (time.monotonic() - began)
        page = run(device, left, options.json, Path(folder), options.parts, options.rehearse)
    print(page)
    if options.markdown:
        partial = options.markdown.with_name(options.markdown.name + ".partial")
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, options.markdown)
    return 0


def run(device, budget: float, json: Path, folder: Path, parts, rehearse: bool) -> str:
    """Runs the parts in order until the budget of seconds is spent, and writes the JSON file after each row. Returns
    the report."""
    import torch

    from ..kernels import machine, report
    from ..kernels.clocks import Clocks
    from ..kernels.timing import Clock
    from . import job, steps, targets

    torch.backends.cuda.matmul.allow_tf32 = False
    clock = Clock(device, budget, quick=rehearse)
    found = {"machine": "a rehearsal: these figures mean nothing"} if rehearse else {}
    found |= machine.describe(device)
    small, large = (steps.TINY, steps.TINY._replace(name="T2V tiny, again")) if rehearse else (steps.SMALL, steps.LARGE)
    rows, cut = [], []
    report.save(json, found, rows)
    with Clocks(device) as clocks:
        phases = {
            "480p": lambda: steps.measure(clock, clocks, small, folder),
            "720p": lambda: steps.measure(clock, clocks, large, folder),
            "job": lambda: job.measure(clock, clocks, folder, job.TINY if rehearse else job.FULL),
        }
        for name in (name for name in PARTS if name in parts):
            if clock.left() <= 0:
                cut.append(name)
                continue
            try:
                for row in phases[name]():
                    rows.append(row)
                    report.save(json, found, rows)
                    logging.getLogger(__name__).info("%s", " | ".join(row.cells()))
                    if clock.left() <= 0:
                        cut.append(name)
                        break
            except RuntimeError as error:  # out of memory, a driver: what comes next may still run
                if rehearse:
                    raise
                rows.append(report.Row(name, "stopped", "", note=f"{type(error).__name__}: {str(error)[:300]}"))
                report.save(json, found, rows)
    return report.markdown(found, rows, [] if rehearse else targets.verdicts(found, rows), cut, "Whole steps")

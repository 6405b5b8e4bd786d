"""`dev.py bench kernels`: the kernels on this machine's GPU, against the fastest operators of torch and comfy_kitchen.

Needs torch and triton only, and runs in the Python that starts it. `--rehearse` runs every line of it on tiny shapes
without a GPU, in Triton's interpreter: its figures mean nothing."""

import argparse
import logging
import os
import sys
from pathlib import Path

BUDGET = 540.0
# The share of the budget by the end of which a phase is cut off.
DEADLINES = {"compiled": 0.15, "attention": 0.55, "linear": 0.85, "block": 1.0}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench kernels", description=__doc__)
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="time allowed (default 540)")
    parser.add_argument("--json", type=Path, default=Path("bench-kernels.json"), help="where the figures go")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny shapes without a GPU: checks this program, measures nothing"
    )
    options = parser.parse_args(arguments)
    if options.rehearse:
        from ...support import interpreter

        interpreter.install()
        device = interpreter.DEVICE
    else:
        import torch

        if not torch.cuda.is_available():
            print(
                "bench kernels needs a GPU that torch can use; --rehearse runs it without one, measuring nothing.",
                file=sys.stderr,
            )
            return 2
        device = torch.device("cuda", torch.cuda.current_device())
    page = run(device, options.budget, options.json, options.rehearse)
    print(page)
    if options.markdown:
        partial = options.markdown.with_name(options.markdown.name + ".partial")
        partial.write_text(page)
        os.replace(partial, options.markdown)
    return 0


def run(device, budget: float, json: Path, rehearse: bool) -> str:
    """Runs all phases, the most informative first, and rewrites the JSON file after each row. Returns the report."""
    import torch

    from . import attention, block, compiled, linear, machine, report, targets
    from .clocks import Clocks
    from .timing import Clock

    torch.backends.cuda.matmul.allow_tf32 = False
    clock, clocks = Clock(device, budget, quick=rehearse), Clocks(device)
    phases = {
        "compiled": lambda: compiled.measure(clock),
        "attention": lambda: attention.measure(clock, clocks),
        "linear": lambda: linear.measure(clock, clocks),
        "block": lambda: block.measure(clock, clocks),
    }
    if rehearse:
        tiny = {"length": 20, "heads": 2, "width": 64, "ffn": 128, "text": 4}
        phases = {
            "compiled": lambda: compiled.measure(clock, tiny),
            "attention": lambda: attention.measure(clock, clocks, shapes=[(200, 1)], ratios=(0.5,), width=64),
            "linear": lambda: linear.measure(clock, clocks, shapes=[(20, 128, 256)]),
            "block": lambda: block.measure(clock, clocks, tiny),
        }
    found = {"machine": "a rehearsal in Triton's interpreter: these figures mean nothing"} if rehearse else {}
    found |= machine.describe(device)
    rows, cut = [], []
    with clocks:
        for name, phase in phases.items():
            for row in phase():
                rows.append(row)
                report.save(json, found, rows)
                logging.getLogger(__name__).info("%s", " | ".join(row.cells()))
                if clock.left() < (1 - DEADLINES[name]) * budget:
                    cut.append(name)
                    break
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return report.markdown(found, rows, [] if rehearse else targets.verdicts(found, rows), cut)

"""Writes docs/benchmarks/simulated.md: what the compiled kernels gave on the emulator, by kernel and compute
capability."""

import subprocess
from collections import defaultdict
from pathlib import Path

from .cases import ALL, CASES
from .worker import Result

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "simulated.md"
_HEAD = """# Compiled kernels executed in an emulator

Written by `python dev.py test --simulated all`, commit {commit}. Every Triton kernel is compiled by Triton's own JIT for each compute
capability, with the launch options of that GPU, and its **PTX is executed in an emulator on the CPU**. No GPU has run this.

A row is the largest error of an operator's cases against its definition in plain torch (for attention in float32), and the most it may
be. While they run, every access is checked for bounds, alignment, races in shared memory, reads of uninitialized memory, and reads of
asynchronous copies and products before their wait. Not shown: ptxas, speed, the rounding inside one tensor-core instruction and that
of approximate functions (both are computed exactly), races in global memory, and on 10.0 the attention kernels but for int8's: their
products in 16 bits and fp8 are compiled to tcgen05 on tensor memory there, with mbarrier and elect.sync, which the emulator has not.

| operator | measured | cases | {capabilities} | at most |
|---|---|---|{rule}|---|
"""


def _commit() -> str:
    """The checked-out commit, marked where the working tree differs from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    found = subprocess.run(command, cwd=PAGE.parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def write(results: dict[tuple[int, str], Result], page: Path = PAGE) -> None:
    """`results` by (compute capability, case); each case has run without a fault."""
    rows = defaultdict(lambda: defaultdict(list))
    bounds, cases = defaultdict(list), defaultdict(set)
    for (capability, name), result in results.items():
        operator = CASES[name].operator
        cases[operator].add(name)
        for check in result.checks:
            rows[operator, check.what][capability].append(check.error)
            bounds[operator, check.what].append(check.bound)
    lines = []
    for (operator, what), found in rows.items():
        errors = [f"{max(found[c]):.2g}" if found[c] else "-" for c in ALL]
        cells = [operator, what, str(len(cases[operator])), *errors, f"{max(bounds[operator, what]):.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    head = _HEAD.format(
        commit=_commit(), capabilities=" | ".join(f"{c / 10:.1f}" for c in ALL), rule="|".join(["---"] * len(ALL))
    )
    page.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")

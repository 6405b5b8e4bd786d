"""The rows of the kernel benchmark as JSON and as Markdown tables."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .timing import Timing

# A row's ratios: (how often faster than, column of the table).
AGAINST = {
    "sdpa": "vs best SDPA",
    "cublas": "vs cuBLAS bf16",
    "comfy_kitchen": "vs comfy_kitchen",
    "dense": "vs dense bf16",
    "stock": "vs stock",
}


@dataclass
class Row:
    """One operator at one shape. `error` is relative L2 against float64, or what the note says; `floor` the least
    milliseconds the chip allows."""

    phase: str
    operator: str
    shape: str
    timing: Timing | None = None
    flop: float | None = None
    floor: float | None = None
    error: float | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    peak_gb: float | None = None  # memory over weights and inputs
    clocks: str = ""  # of the GPU meanwhile

    def cells(self) -> list[str]:
        def number(value: float | None, form: str) -> str:
            return "" if value is None else format(value, form)

        ms = self.timing.ms if self.timing else None
        rate = self.flop / ms / 1e9 if self.flop and ms else None
        return [
            self.operator,
            self.shape,
            number(ms, ".3f"),
            f"{self.timing.p10:.3f}-{self.timing.p90:.3f}" if self.timing else "",
            number(rate, ".0f"),
            *(number(self.ratios.get(name), ".2f") for name in AGAINST),
            number(self.error, ".1e"),
            number(self.floor, ".3f"),
            number(self.peak_gb, ".1f"),
            self.clocks,
            self.note,
        ]


HEADER = ["operator", "shape", "ms", "p10-p90", "TFLOPS", *AGAINST.values(), "error", "floor, ms", "peak, GB"]
HEADER += ["clock, power, temperature", "note"]


def markdown(
    machine: Mapping[str, object], rows: list[Row], targets: list[str], cut: list[str], title: str = "Kernels"
) -> str:
    """The report as a page: machine, targets, one table for each phase."""
    lines = [f"# {title}", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    if targets:
        lines += ["", "Targets:", "", *(f"- {line}" for line in targets)]
    if cut:
        lines += ["", f"Out of time before the end of: {', '.join(cut)}."]
    for phase in dict.fromkeys(row.phase for row in rows):
        lines += ["", f"## {phase}", "", table(HEADER, [row.cells() for row in rows if row.phase == phase])]
    return "\n".join(lines) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table without the columns that are empty everywhere."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    lines = [[header[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def save(path: Path, machine: Mapping[str, object], rows: list[Row]) -> None:
    """Writes all rows so far, so that a killed run keeps what it measured."""
    data = {"machine": dict(machine), "rows": [dataclasses.asdict(row) for row in rows]}
    for row, given in zip(data["rows"], rows, strict=True):
        row["timing"] = given.timing and given.timing._asdict()
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(partial, path)

"""Whether the figures meet the project's targets."""

from collections.abc import Mapping

from . import attention, linear
from .report import Row

LENGTH = f"L={attention.SHAPES[-1][0]} "  # 14B, 720p
# Part of the GPU's name: (operator in the format of mode auto or 16 bits, least ratio against the best dense SDPA)
ATTENTION = {
    "H100": (("sla 16-bit, top-k 0.1", 5.0), ("sla 16-bit, top-k 0.15", 3.5)),
    "H200": (("sla 16-bit, top-k 0.1", 5.0), ("sla 16-bit, top-k 0.15", 3.5)),
    "RTX 40": (("sla int8, top-k 0.1", 13.0),),
    "RTX 50": (("sla int8, top-k 0.1", 20.0),),
}
OVERHEAD = 0.2  # map, preparation and linear branch, as a share of the operator
INT8_TWICE = ("A100", "RTX 30", "RTX 40", "RTX 50", "H100", "H200")  # int8 tensor cores at least twice as fast as bf16


def verdicts(machine: Mapping[str, object], rows: list[Row]) -> list[str]:
    """One line for each target of this GPU."""
    gpu = str(machine.get("GPU", ""))
    lines = []
    for part, wanted in ATTENTION.items():
        if part in gpu:
            for operator, least in wanted:
                ratio = _ratio(rows, operator, "sdpa")
                lines.append(_line(f"{operator} at {least:g} times the best dense SDPA", ratio, least))
    lines += _overhead(rows)
    for row in rows:
        if row.phase == linear.PHASE and row.operator.startswith("int8") and "cublas" in row.ratios:
            least = 1.5 if any(part in gpu for part in INT8_TWICE) else 1.0
            lines.append(
                _line(f"{row.operator}, {row.shape}: {least:g} times cuBLAS bf16", row.ratios["cublas"], least)
            )
    return lines or ["none of these figures has a target"]


def _ratio(rows: list[Row], operator: str, against: str) -> float | None:
    return next(
        (row.ratios.get(against) for row in rows if row.operator == operator and row.shape.startswith(LENGTH)), None
    )


def _overhead(rows: list[Row]) -> list[str]:
    times = {row.operator.strip(): row.timing.ms for row in rows if row.timing and row.shape.startswith(LENGTH)}
    whole, bare = times.get("sla 16-bit, top-k 0.1"), times.get("attend, 16-bit, sparse alone, top-k 0.1")
    if whole is None or bare is None:
        return []
    share = 1 - bare / whole
    verdict = "holds" if share < OVERHEAD else "MISSED"
    return [f"map, preparation and linear branch under {OVERHEAD:.0%} of the operator: {share:.1%}, {verdict}"]


def _line(what: str, ratio: float | None, least: float) -> str:
    if ratio is None:
        return f"{what}: not measured"
    return f"{what}: {ratio:.2f}, {'holds' if ratio >= least else 'MISSED'}"

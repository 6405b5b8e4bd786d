"""Whether the steps meet the project's targets, and what was predicted of them."""

from collections.abc import Mapping

from ..kernels.report import Row
from ..predict.gpus import GPUS
from ..predict.step import MODELS, step
from . import steps

STEPS = 4
# By model and a part of the GPU's name: the most seconds of STEPS steps, in the fastest form.
SAMPLING = {
    ("T2V 14B 720p", "RTX 5090"): 17.0,
    ("T2V 14B 720p", "RTX 4090"): 23.0,
    ("T2V 14B 720p", "H200"): 12.0,
    ("T2V 14B 720p", "H100"): 12.5,
    ("T2V 1.3B 480p", "RTX 5090"): 1.0,
}


def verdicts(machine: Mapping[str, object], rows: list[Row]) -> list[str]:
    """A line for each target of this GPU, and for each form whose step has been predicted."""
    gpu = str(machine.get("GPU", ""))
    lines = []
    for (model, part), most in SAMPLING.items():
        if part in gpu:
            ours = [row.timing.ms for row in rows if row.phase == model and row.timing and "attention" in row.operator]
            seconds = STEPS * min(ours) / 1e3 if ours else None
            lines.append(f"{model}, {STEPS} steps within {most:g} s: {_verdict(seconds, most)}")
    return [*lines, *_predictions(gpu, rows)] or ["none of these figures has a target"]


def _verdict(seconds: float | None, most: float) -> str:
    if seconds is None:
        return "not measured"
    return f"{seconds:.2f} s ({STEPS} times a step), {'holds' if seconds <= most else 'MISSED'}"


def _predictions(gpu: str, rows: list[Row]) -> list[str]:
    """Measured beside `dev.py bench predict`, in 16 bits, which are predicted alike for every GPU."""
    chip = next((chip for name, chip in GPUS.items() if name.split()[0] in gpu or name.split()[-1] in gpu), None)
    lines = []
    for row in rows:
        for weights in ("int8_block", "int8_rowwise"):
            variant = steps.Variant(weights, "sla")
            if chip and row.phase in MODELS and row.operator == variant.name and row.timing:
                seconds = sum(time.seconds for time in step(chip, MODELS[row.phase], steps.TOPK, "", weights).values())
                lines.append(
                    f"{row.phase}, {row.operator}: {row.timing.ms / 1e3:.2f} s measured, {seconds:.2f} s predicted"
                )
    return lines

"""The time of each kernel from its compiled code: clocks of the tensor cores, of issuing the hottest loop's
instructions, of the special-function unit, and bytes moved.

A multiprocessor has four schedulers that issue an instruction a clock each. The kernels here keep 8 warps on it, so a
loop takes two clocks for each of its instructions. Products and the other instructions are added up: with two warps a
scheduler, that all depend on their own products, one seldom covers the other's."""

import importlib
from dataclasses import dataclass

from .gpus import BLOCK, GPU

WARPS_PER_SCHEDULER = 2
SPECIAL = 8  # clocks of a scheduler for one instruction of the special-function unit: 4 of 32 lanes a clock
BANDWIDTH = 0.8  # share of the published one that a streaming kernel reaches
# Issued by each of 8 warps for a block of 128 x 64 scores: exponentials and two for the decay; conversions of int32.
EXPONENTIALS, SCORES, SUMS = 34, 32, 64
CONVERTS_ON_SPECIAL = ("sm_80",)  # I2F; later chips have I2FP, which the usual units execute


@dataclass(frozen=True)
class Time:
    """One kernel, or several: seconds, the bytes it moves through memory, launches."""

    seconds: float
    bytes: float
    launches: int

    def __add__(self, other: "Time") -> "Time":
        return Time(self.seconds + other.seconds, self.bytes + other.bytes, self.launches + other.launches)

    def __mul__(self, count: int) -> "Time":
        return Time(self.seconds * count, self.bytes * count, self.launches * count)


NOTHING = Time(0.0, 0.0, 0)


def loop_instructions(operator: str, case: str, target: str) -> int:
    """Instructions of the hottest loop as test_aot.py has them recorded."""
    cases = importlib.import_module(f"...kernels.aot_cases.{operator}", __package__).CASES
    return next(each for each in cases if each.name == case).targets[target].loop


def _others(loop: int, special: int) -> float:
    """Clocks of a loop's instructions that are not products."""
    return max(loop * WARPS_PER_SCHEDULER, special * SPECIAL * WARPS_PER_SCHEDULER)


def streamed(gpu: GPU, bytes_: float, launches: int = 1) -> Time:
    """A kernel that does little but move bytes."""
    return Time(bytes_ / (gpu.bandwidth * 1e9 * BANDWIDTH), bytes_, launches)


def matmul(gpu: GPU, rows: int, n: int, k: int, case: str, bytes_: float) -> Time:
    """An int8 product [rows, k] x [n, k]; a step is 128 x 128 x 128."""
    steps = -(-rows // 128) * -(-n // 128) * -(-k // 128)
    loop = loop_instructions("int8", case, gpu.target)
    clocks = gpu.clocks("int8", 2 * BLOCK) + _others(loop, 0)  # sm_80 converts by an addition
    moved = streamed(gpu, bytes_)
    return Time(max(gpu.seconds(steps * clocks), moved.seconds), bytes_, 1)


def attention(gpu: GPU, blocks: float, pv: str, bytes_: float) -> Time:
    """The sparse branch, for so many pairs of a query block and a key block; `pv` as in pv_format.py."""
    clocks = sage_clocks(gpu, pv) if pv else 2 * gpu.clocks("bf16", BLOCK)
    operator, case = ("sage", f"sage_attention_{pv}_d128") if pv else ("sla", "sla_attention_d128_linear")
    converted = (SCORES if pv else 0) + (SUMS if pv == "int8" else 0)
    special = EXPONENTIALS + (converted if gpu.target in CONVERTS_ON_SPECIAL else 0)
    clocks += _others(loop_instructions(operator, case, gpu.target), special)
    moved = streamed(gpu, bytes_)
    return Time(max(gpu.seconds(blocks * clocks), moved.seconds), bytes_, 1)


def sage_clocks(gpu: GPU, pv: str) -> float:
    """Of the tensor cores, for the two products of a pair of blocks."""
    kind = "fp8, float16 sums" if pv == "fp8" and gpu.rates["fp8, float16 sums"] else pv
    return gpu.clocks("int8", BLOCK) + gpu.clocks(kind, BLOCK)

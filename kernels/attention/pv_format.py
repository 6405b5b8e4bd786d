"""The number formats in which sage attention multiplies the softmax weights with v, and which of them, if any, a GPU
should take instead of 16 bits."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from ..backends import triton_unavailable, triton_version


class PVFormat(NamedTuple):
    """`p_max` is the largest softmax weight, `v_max` the largest |code| of v; None where v is cast and has no scale."""

    p_max: float
    v_max: float | None
    dtype: torch.dtype  # of v


# From the most exact to the least. In "fp8" (e4m3) 448 * 2.25 * 64 keys stays below 65504, so a GPU may accumulate a
# key block in float16; a `v_max` of 448 gave no measurable gain.
PV_FORMATS = {
    "fp16": PVFormat(1.0, None, torch.float16),
    "int8": PVFormat(127.0, 127.0, torch.int8),
    "fp8": PVFormat(448.0, 2.25, torch.float8_e4m3fn),
}
SIXTEEN_BITS = ""  # names sparse attention that is not sage attention, where the name of a format is expected
AUTOMATIC = "auto"  # what `automatic_format` chooses

# Predicted seconds of the sparse branch over those in 16 bits, by compute capability and format: 14B at 720p, top-k
# 0.1, quantizing k and v included. `dev.py bench predict` derives them from compiled code; none is measured. There is
# none for 10.0, which runs int8 products on units of unknown speed.
PREDICTED: Mapping[tuple[int, int], Mapping[str, float]] = MappingProxyType(
    {
        (8, 0): {"fp16": 0.85, "int8": 1.01},
        (8, 6): {"int8": 0.36},
        (8, 9): {"int8": 0.38, "fp8": 0.37},
        (9, 0): {"fp16": 0.92, "int8": 0.90, "fp8": 0.78},
        (12, 0): {"int8": 0.37, "fp8": 0.36},
    }
)
_EQUAL = 1.05  # predictions within this factor do not tell which is faster: the more exact format is taken
_FP8_TRITON = (3, 5, 1)  # older versions do not compile fp8 (8.9) or multiply it in fp16 (12.0)


class Format(NamedTuple):
    name: str  # of PV_FORMATS, or SIXTEEN_BITS
    reason: str


def _predictions(capability: tuple[int, int], triton: tuple[int, ...]) -> dict[str, float]:
    """The predictions for a compute capability, else for the nearest lower one of its generation; without formats that
    this Triton does not run."""
    known = [each for each in PREDICTED if each[0] == capability[0] and each <= capability]
    times = dict(PREDICTED[max(known)]) if known else {}
    if triton < _FP8_TRITON:
        times.pop("fp8", None)
    return times


def _best(times: Mapping[str, float]) -> Format:
    """The most exact of the formats that are predicted to be no more than 5 % slower than the fastest."""
    fastest = min(times.values())
    name = next(name for name in (SIXTEEN_BITS, *PV_FORMATS) if times.get(name, float("inf")) < fastest * _EQUAL)
    others = ", ".join(f"{other} {time:.0%}" for other, time in times.items() if other not in (name, SIXTEEN_BITS))
    if name == SIXTEEN_BITS:
        return Format(name, f"as fast by prediction, and more exact ({others} of the time)")
    said = f"predicted to take {times[name]:.0%} of the time in 16 bits"
    return Format(name, said + (f" ({others})" if others else ""))


def best_sage_format(capability: tuple[int, int], triton: tuple[int, ...]) -> Format:
    """The format of sage attention on an NVIDIA GPU of this compute capability."""
    times = _predictions(capability, triton)
    return _best(times) if times else Format("fp16", "the most exact; there is no prediction for this chip")


def best_format(capability: tuple[int, int], triton: tuple[int, ...]) -> Format:
    """The format of sparse attention on an NVIDIA GPU of this compute capability."""
    times = _predictions(capability, triton)
    if not times:
        return Format(SIXTEEN_BITS, "there is no prediction for this chip in 8 bits")
    return _best({SIXTEEN_BITS: 1.0} | times)


def sage_pv_format(device: torch.device) -> Format:
    """The format of sage attention on a device, and why."""
    reason = triton_unavailable(device)
    if reason is not None:
        return Format("fp16", f"the most exact, since Triton does not run: {reason}")
    if torch.version.hip is not None:
        return Format("fp16", "the others are not compiled for AMD GPUs")
    return best_sage_format(torch.cuda.get_device_capability(device), triton_version())


def fastest_format(device: torch.device) -> Format:
    """The format that is predicted to be the fastest on a device, and why; 16 bits where there is no prediction. Does
    not run the self-test of its kernels, which `custom_ops.automatic_format` does."""
    reason = triton_unavailable(device)
    if reason is not None:
        return Format(SIXTEEN_BITS, f"Triton does not run: {reason}")
    if torch.version.hip is not None:
        return Format(SIXTEEN_BITS, "there is no prediction for AMD GPUs in 8 bits")
    return best_format(torch.cuda.get_device_capability(device), triton_version())


def sage_v_bytes(device: torch.device) -> int:
    """Bytes of an element of v as sage attention's kernels read it on a device; 0 where they cannot be tried."""
    return 0 if triton_unavailable(device) else PV_FORMATS[sage_pv_format(device).name].dtype.itemsize

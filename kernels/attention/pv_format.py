"""The number formats in which sage attention multiplies the softmax weights with v, and which of them, if any, a GPU
should take instead of 16 bits."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from ..backends import triton_unavailable, triton_version


class PVFormat(NamedTuple):
    """`p_max` is the largest weight, `v_max` the largest |code| of v, None where v is cast and has no scale."""

    p_max: float
    v_max: float | None
    dtype: torch.dtype  # of v


# From the most exact to the least. In "fp8" (e4m3) 448 * 2.25 * 64 keys stays below 65504, so a GPU may add up a key
# block in float16; with 448 instead of 2.25 nothing measurable is gained.
PV_FORMATS = {
    "fp16": PVFormat(1.0, None, torch.float16),
    "int8": PVFormat(127.0, 127.0, torch.int8),
    "fp8": PVFormat(448.0, 2.25, torch.float8_e4m3fn),
}
SIXTEEN_BITS = ""  # sparse attention that is not sage attention, in the places that name a format
AUTOMATIC = "auto"  # what `automatic_format` chooses

# Predicted seconds of the sparse branch over those in 16 bits, by compute capability and format: 14B at 720p, top-k
# 0.1, quantizing k and v included. `dev.py bench predict` derives them from compiled code; none is measured. A
# capability that is not listed has no prediction: 10.0 runs int8 products on units of unknown speed.
PREDICTED: Mapping[tuple[int, int], Mapping[str, float]] = MappingProxyType(
    {
        (8, 0): {"fp16": 0.85, "int8": 1.01},
        (8, 6): {"int8": 0.36},
        (8, 9): {"int8": 0.38, "fp8": 0.37},
        (9, 0): {"fp16": 0.92, "int8": 0.90, "fp8": 0.78},
        (12, 0): {"int8": 0.37, "fp8": 0.36},
    }
)
_EQUAL = 1.05  # predictions closer than this do not tell which is faster: the more exact format is taken
_FP8_TRITON = (3, 5, 1)  # before, fp8 does not compile (8.9) or is multiplied in fp16 (12.0)


class Format(NamedTuple):
    name: str  # of PV_FORMATS, or SIXTEEN_BITS
    reason: str


def _predictions(capability: tuple[int, int], triton: tuple[int, ...]) -> dict[str, float]:
    """Those of a compute capability, or of the earlier ones of its generation; without formats that do not run."""
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
    """The format that a device should run by the predictions, 16 bits where there is none, and why. Whether its
    kernels pass their self-test is another question (`custom_ops.automatic_format`)."""
    reason = triton_unavailable(device)
    if reason is not None:
        return Format(SIXTEEN_BITS, f"Triton does not run: {reason}")
    if torch.version.hip is not None:
        return Format(SIXTEEN_BITS, "there is no prediction for AMD GPUs in 8 bits")
    return best_format(torch.cuda.get_device_capability(device), triton_version())


def sage_v_bytes(device: torch.device) -> int:
    """Bytes of an element of v as sage attention's kernels read it on a device; 0 where they cannot be tried."""
    return 0 if triton_unavailable(device) else PV_FORMATS[sage_pv_format(device).name].dtype.itemsize

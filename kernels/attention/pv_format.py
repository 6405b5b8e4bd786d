"""The number formats in which sage attention multiplies the softmax weights with v, and which of them a GPU runs."""

from typing import NamedTuple

import torch

from ..backends import triton_unavailable, triton_version


class PVFormat(NamedTuple):
    """`p_max` is the largest weight, `v_max` the largest |code| of v, None where v is cast and has no scale."""

    p_max: float
    v_max: float | None
    dtype: torch.dtype  # of v


# In "fp8" (e4m3) 448 * 2.25 * 64 keys stays below 65504, so a GPU may add up a key block in float16; with 448 instead
# of 2.25 nothing measurable is gained.
PV_FORMATS = {
    "fp16": PVFormat(1.0, None, torch.float16),
    "int8": PVFormat(127.0, 127.0, torch.int8),
    "fp8": PVFormat(448.0, 2.25, torch.float8_e4m3fn),
}


class DefaultFormat(NamedTuple):
    name: str | None  # of PV_FORMATS; None: no sage attention on this GPU
    faster: bool  # than the 16-bit kernel, going by the instructions
    reason: str


def default_pv(capability: tuple[int, int], triton_version: tuple[int, ...]) -> DefaultFormat:
    """The format for an NVIDIA GPU of this compute capability."""
    major = capability[0]
    if major < 8:
        return DefaultFormat(None, False, "no int8 tensor cores that Triton can use")
    if capability == (8, 0):
        return DefaultFormat("fp16", True, "no fp8 here; int8 is hardly faster than fp16 on this chip and rounds more")
    if major in (9, 10):
        return DefaultFormat(
            "fp16", False, "the 16-bit kernel is as good here: rounding takes the time that 8 bits save"
        )
    if capability < (8, 9):
        return DefaultFormat("int8", True, "no fp8 here, and int8 is twice as fast as fp16")
    if triton_version < (3, 5, 1):
        return DefaultFormat("int8", True, "fp8 needs Triton 3.5.1: before, it does not compile or runs as fp16")
    return DefaultFormat("fp8", True, "fp8 products added up in float16 are the fastest of this chip")


def sage_pv_format(device: torch.device) -> tuple[str, str]:
    """The format in which sage attention multiplies with v on a device ("fp16", "int8" or "fp8"), and why."""
    reason = triton_unavailable(device)
    if reason is not None:
        return "fp16", f"the most exact, since Triton does not run: {reason}"
    if torch.version.hip is not None:
        return "fp16", "the others are not compiled for AMD GPUs"
    default = default_pv(torch.cuda.get_device_capability(device), triton_version())
    return default.name or "fp16", default.reason

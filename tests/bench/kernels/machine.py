"""The device of the benchmark, and its roofline."""

import importlib.metadata
import importlib.util
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Dense peaks of a chip: 10^12 operations a second in bf16 and int8, 10^9 bytes a second from memory."""

    bf16: float
    int8: float
    memory: float


# By a part of the name that CUDA gives the device; data sheets of the makers.
PEAKS = {
    "H200": Peak(989, 1979, 4800),
    "H100": Peak(989, 1979, 3350),
    "A100": Peak(312, 624, 2039),
    "RTX 4090": Peak(165, 660, 1008),
    "RTX 5090": Peak(209.5, 838, 1792),
}


def peak(device: torch.device) -> Peak | None:
    """The peaks of a device, None if they are not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def floor_ms(peak: Peak | None, bytes_moved: float, bf16: float = 0, int8: float = 0) -> float | None:
    """The roofline in milliseconds: the slower of arithmetic (operations by type) and memory traffic."""
    if peak is None:
        return None
    return max((bf16 / peak.bf16 + int8 / peak.int8) / 1e9, bytes_moved / peak.memory / 1e6)


def describe(device: torch.device) -> dict[str, object]:
    """GPU, driver, clocks, versions and commit."""
    found: dict[str, object] = {}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, total = torch.cuda.mem_get_info(device)
        found["GPU"] = f"{properties.name}, {properties.multi_processor_count} multiprocessors"
        found["compute capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["memory"] = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        query = _output(
            "nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit", "--format=csv,noheader"
        )
        found["driver, clock, highest clock, power limit"] = query or "unknown"
    else:
        found["GPU"] = f"none: {platform.processor() or platform.machine()}"
    found["torch"] = f"{torch.__version__} (CUDA {torch.version.cuda}, HIP {torch.version.hip})"
    found["triton"] = importlib.metadata.version("triton") if importlib.util.find_spec("triton") else "none"
    found["comfy_kitchen"] = (
        importlib.metadata.version("comfy_kitchen") if importlib.util.find_spec("comfy_kitchen") else "none"
    )
    found["commit"] = _output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD") or "unknown"
    return found


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

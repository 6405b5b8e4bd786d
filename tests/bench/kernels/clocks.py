"""The GPU's clock and power while something is timed, as nvidia-smi reports them."""

import statistics
import subprocess
import threading
import time
from typing import NamedTuple

import torch

INTERVAL = 200  # ms


class Sample(NamedTuple):
    """At a time of `time.monotonic`: MHz of the multiprocessors, watts, degrees Celsius."""

    at: float
    mhz: float
    watts: float
    celsius: float


class Clocks:
    """Around the timing: samples of one device, none where nvidia-smi is missing or the device is no GPU of NVIDIA."""

    def __init__(self, device: torch.device):
        self._samples: list[Sample] = []
        self._process = None
        if device.type == "cuda" and torch.version.hip is None:
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".replace("GPU-GPU-", "GPU-")
            query = "--query-gpu=clocks.sm,power.draw,temperature.gpu"
            command = ["nvidia-smi", "-i", uuid, query, "--format=csv,noheader,nounits", "-lms", str(INTERVAL)]
            try:
                self._process = subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
                )
            except OSError:
                return
            threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "Clocks":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def since(self, start: float) -> str:
        """The median of the samples since `start` (of `time.monotonic`), empty if there is none."""
        samples = [sample for sample in list(self._samples) if sample.at >= start]
        if not samples:
            return ""
        mhz, watts, celsius = (statistics.median(values) for values in list(zip(*samples, strict=True))[1:])
        return f"{mhz:.0f} MHz, {watts:.0f} W, {celsius:.0f} C"

    def _read(self) -> None:
        for line in self._process.stdout:
            self._add(line)

    def _add(self, line: str) -> None:
        try:
            self._samples.append(Sample(time.monotonic(), *map(float, line.split(","))))
        except (ValueError, TypeError):  # "[N/A]", or an error message
            pass

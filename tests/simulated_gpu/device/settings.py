"""How many simulated devices a process has, how large they are, and what tests do to them while it runs."""

import os
import struct
from pathlib import Path
from typing import NamedTuple

from .build import build

LAUNCH = Path(__file__).parent / "launch.py"
_CONTROL = struct.Struct("<11q")  # Control of aten.h


class Devices(NamedTuple):
    """`count` devices of `memory` bytes each and one compute capability. `control`: a file for `Control`, or None."""

    count: int = 1
    memory: int = 24 << 30
    capability: int = 80
    control: Path | None = None

    def environment(self) -> dict[str, str]:
        """The variables of a process that has these devices; it starts with `LAUNCH`. Builds them the first time."""
        folder = build()
        libraries = [str(folder / "driver"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        variables = {
            "LD_PRELOAD": str(folder / "libcudart.so.13"),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "TORCH_CPP_LOG_LEVEL": "ERROR",  # or each process warns of the first operator that it replaces
            "SIMULATED_GPU_OPERATORS": str(folder / "libaten.so"),
            "SIMULATED_GPU_COUNT": str(self.count),
            "SIMULATED_GPU_MEMORY": str(self.memory),
            "SIMULATED_GPU_CAPABILITY": str(self.capability),
        }
        if self.control is not None:
            variables["SIMULATED_GPU_CONTROL"] = str(self.control)
        return variables


class Control:
    """Counts the tensors that another process allocates on its devices, and makes one allocation fail."""

    def __init__(self, path: Path):
        self.path = path
        path.write_bytes(bytes(_CONTROL.size))

    def _read(self) -> tuple[int, ...]:
        return _CONTROL.unpack(self.path.read_bytes())

    @property
    def allocations(self) -> int:
        """How many tensors were allocated so far."""
        return self._read()[0]

    @property
    def failed(self) -> int:
        """How many allocations were made to fail."""
        return self._read()[2]

    @property
    def on_device(self) -> tuple[int, ...]:
        """How many tensors were allocated so far on each device."""
        return self._read()[3:]

    def fail(self, number: int) -> None:
        """The allocation of this number, counted as `allocations` does, raises OutOfMemoryError; 0 for none."""
        with self.path.open("r+b") as file:
            file.seek(8)
            file.write(struct.pack("<q", number))

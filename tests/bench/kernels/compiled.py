"""Compile time, registers, spills and shared memory of each kernel on this machine."""

import importlib
import time
from collections.abc import Iterator

import torch

from ....kernels.attention.format import BLOCK_K, BLOCK_Q
from ...support.kernels import TRITON_FILES, module_name
from . import attention, block, linear
from .clocks import Clocks
from .report import Row
from .timing import Clock

PHASE = "Compiling"
SIZES = {"length": 1024, "heads": 2, "width": 128, "ffn": 512, "text": 64}


def measure(clock: Clock, sizes=SIZES) -> Iterator[Row]:
    """Runs each operator once on a short sequence. Cached kernels (TRITON_CACHE_DIR) load in milliseconds."""
    length = sizes["length"]
    given = attention.inputs(length, sizes["heads"], clock.device, sizes["width"])
    runs = {
        f"sla {pv or '16-bit'}": lambda pv=pv: attention.operator(given, 0.25, pv)
        for pv in attention.formats(clock.device)
    }
    runs |= {
        variant: lambda variant=variant: block.Block(clock.device, **sizes).run(variant)
        for variant in block.VARIANTS[1:]
    }
    runs["int8 linear, blocks and rows"] = lambda: list(
        linear.measure(Clock(clock.device, 60, quick=True), Clocks(clock.device), [(length, 256, 128)])
    )
    for name, run in runs.items():
        start = time.monotonic()
        run()
        if clock.device.type == "cuda":
            torch.cuda.synchronize()
        yield Row(
            PHASE, name, f"L={length}, blocks {BLOCK_Q}x{BLOCK_K}", note=f"first run {time.monotonic() - start:.2f} s"
        )
    yield from _resources(clock.device)


def _resources(device: torch.device) -> Iterator[Row]:
    """Registers, spills and shared memory of everything compiled so far, as the driver states them."""
    for path in TRITON_FILES:
        module = module_name(path)
        found = vars(importlib.import_module(f"....{module}", __package__))
        for name, function in found.items():
            if getattr(getattr(function, "fn", None), "__module__", "").endswith(module) and hasattr(
                function, "device_caches"
            ):
                for kernel in function.device_caches[device.index or 0][0].values():
                    if hasattr(kernel, "n_regs"):
                        note = f"{kernel.n_regs} registers, {kernel.n_spills} bytes spilled, "
                        note += f"{kernel.metadata.shared} bytes shared, "
                        yield Row(PHASE, name.strip("_"), path.stem, note=note + f"{kernel.metadata.num_warps} warps")

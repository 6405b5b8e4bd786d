"""Launches Triton kernels on the device of their tensors or, ahead of the first launch, only compiles them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch


class Chip(NamedTuple):
    """What a launch config depends on. `capability`: the compute capability of an NVIDIA GPU, the generation of an AMD
    one (`hip`), or (0, 0) for a CPU, which runs Triton's interpreter."""

    capability: tuple[int, int]
    hip: bool = False

    @property
    def rdna(self) -> bool:
        """An AMD GPU of the RDNA line, from RDNA 3 (gfx11) on: 32 lanes a warp and 256 registers a lane."""
        return self.hip and self.capability[0] >= 11


_compiled_for: ContextVar[Chip | None] = ContextVar("turbodiffusion_compiled_for", default=None)


@contextmanager
def compiling_for(chip: Chip) -> Iterator[None]:
    """Within the block `launch` compiles for a chip, which must be Triton's current one, and runs nothing. Tensors may
    be on "meta"."""
    token = _compiled_for.set(chip)
    try:
        yield
    finally:
        _compiled_for.reset(token)


def chip_of(x: torch.Tensor) -> Chip:
    """The chip that a kernel on x runs on, or is compiled for."""
    return _compiled_for.get() or chip_at(x.device if x.is_cuda else None)


def chip_at(device: torch.device | None) -> Chip:
    """The chip of a CUDA or ROCm device, or of a CPU for None."""
    if device is None:
        return Chip((0, 0))
    return Chip(torch.cuda.get_device_capability(device), torch.version.hip is not None)


def launch(kernel: Any, grid: Sequence[int], x: torch.Tensor, *arguments: Any, **options: Any) -> None:
    """Starts a kernel on the device of its first argument x. Within `compiling_for`, only compiles it for these
    arguments, with tensors assumed to be aligned to 16 bytes, as torch allocates them."""
    if _compiled_for.get() is not None:
        dtypes = (value.dtype if isinstance(value, torch.Tensor) else value for value in (x, *arguments))
        kernel.warmup(*dtypes, grid=grid, **options)
        return
    with torch.cuda.device_of(x):
        kernel[grid](x, *arguments, **options)

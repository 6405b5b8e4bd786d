"""What launch options depend on besides NVIDIA's compute capability."""

import torch


def is_rdna(x: torch.Tensor) -> bool:
    """Whether a tensor is on an AMD GPU of the RDNA line, from RDNA 3 (gfx11) on: 32 lanes a warp and 256 registers a lane."""
    return torch.version.hip is not None and x.is_cuda and torch.cuda.get_device_capability(x.device)[0] >= 11

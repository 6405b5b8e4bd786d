"""What the backends of a VAE's norm agree on: the frames that a causal convolution sees, and the memory format."""

import torch

MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last_3d)
PAST = 2  # frames before each frame that a causal convolution over three frames sees


def empty_frames(x: torch.Tensor, frames: int) -> torch.Tensor:
    """An uninitialized [B, C, frames, H, W] for x [B, C, T, H, W]: channels last if x is, else contiguous."""
    b, c, _, h, w = x.shape
    if x.stride(1) == 1 and c > 1:
        return torch.empty((b, frames, h, w, c), dtype=x.dtype, device=x.device).movedim(-1, 1)
    return torch.empty((b, c, frames, h, w), dtype=x.dtype, device=x.device)

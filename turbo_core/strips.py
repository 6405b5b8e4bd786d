"""Cutting a picture that is too large to decode whole into overlapping strips along its longer side, and blending the
seams."""

from itertools import pairwise

import torch

OVERLAP = 8  # latent pixels that neighbors share: a quarter of the 256-pixel tiles ComfyUI falls back to
SMALLEST = 2 * OVERLAP


def strips(length: int, count: int) -> list[slice]:
    """`count` strips of one size over `length` latent pixels, neighbors sharing at least OVERLAP."""
    if count == 1:
        return [slice(0, length)]
    size = -(-(length + (count - 1) * OVERLAP) // count)
    starts = [i * (length - size) // (count - 1) for i in range(count)]
    return [slice(start, start + size) for start in starts]


def counts(length: int) -> range:
    """How many strips a side can be cut into: 1, then more, while a strip is at least SMALLEST."""
    most = (length - OVERLAP) // (SMALLEST - OVERLAP)
    return range(1, max(most, 1) + 1)


def shared(cut: list[slice]) -> list[int]:
    """How many latent pixels each strip shares with the one before it; 0 for the first."""
    return [0, *(before.stop - after.start for before, after in pairwise(cut))]


def blend(old: torch.Tensor, new: torch.Tensor, axis: int) -> torch.Tensor:
    """`old` where the axis begins, `new` where it ends, a straight mix between; shapes and dtypes are equal."""
    count = new.shape[axis]
    weight = (torch.arange(count, device=new.device, dtype=torch.float32) + 0.5) / count
    shape = [1] * new.ndim
    shape[axis] = count
    return torch.lerp(old, new, weight.to(new.dtype).view(shape))

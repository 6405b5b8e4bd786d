"""The block-scaled int8 format: 128x128 tiles of a tensor share one float32 scale. Checkpoints are stored in it, so its
numbers are fixed; everything that depends on them imports them from here.

Tiles lie over the last two dimensions, so they never straddle the items of a batch; the last row and column of tiles
may be ragged. By "block", codes are -128..127 and a scale is amax / 128. By "row" (activations only), each row of the
tensor has one scale, amax / 127, and codes are -127..127."""

from collections.abc import Sequence

import torch

TILE = 128
MIN_AMAX = 1e-8  # a tile of zeros gets codes 0 and a scale that is not 0
KINDS = ("block", "row")

assert TILE == 128, "checkpoints have one scale per 128x128 tile"
# The kernels add products of one tile of K in int32, then convert the sum by adding it to 1.5 * 2^23 (see
# triton_primitives).
assert TILE * 128 * 128 < 2**22, "a sum of TILE products of int8 codes must stay below 2^22"


def tile_count(size: int) -> int:
    """Tiles that cover `size` elements."""
    return -(-size // TILE)


def check_kind(by: str) -> None:
    """Raises ValueError unless `by` is one of KINDS."""
    if by not in KINDS:
        raise ValueError(f"An activation is quantized by {by!r}: choose block or row.")


def scale_shape(shape: Sequence[int], by: str) -> tuple[int, ...]:
    """Shape of the scales of codes [..., M, K]: [..., ceil(M/128), ceil(K/128)] by "block", [..., M] by "row"."""
    return (*shape[:-2], tile_count(shape[-2]), tile_count(shape[-1])) if by == "block" else tuple(shape[:-1])


def empty_codes(x: torch.Tensor, by: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialized int8 codes of x [..., M, K] and their float32 scales."""
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(scale_shape(x.shape, by), dtype=torch.float32)

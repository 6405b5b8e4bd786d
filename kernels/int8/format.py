"""The block-scaled int8 format: 128x128 tiles of a tensor share one float32 scale. Checkpoints are stored in it, so its
numbers are fixed; everything that depends on them imports them from here.

Tiles lie over the last two dimensions, so they never straddle the items of a batch; the last row and column of tiles
may be ragged. By "block", codes are -128..127 and a scale is amax / 128.

Activations may have finer scales, amax / 127 with codes -127..127: by "group", one for 1 x 128 channels of a row (the
last group may be short), by "row", one for a whole row. They use 127 and not 128 because with 128 +amax has no code: it
is off by a whole step, while the mean square error of all other values is 1/12 step^2. In a tile that is one value of
16384. In a group it is one of 128 (in half of the groups, and in nearly all after a GELU, whose largest value is
positive), which costs more than the longer step, whose square is 1.6 % larger: with 127 the mean square error is 3 %
smaller, and 7 % after a GELU. The largest value, which weighs most in a product, is then exact.

A weight by channel has one scale for each row [N], as in ComfyUI's int8 files. Its products with an activation by row
are integers summed over all of K; other activations cannot be combined with it.

The scales of groups are [..., ceil(K/128), M], so that those of the rows that one program multiplies are contiguous."""

from collections.abc import Sequence

import torch

TILE = 128
MIN_AMAX = 1e-8  # gives a tile of zeros a scale that is not 0
KINDS = ("block", "group", "row")
GROUP_LEVELS = 127  # of codes by group
EXACT_K = 1024  # so many products of codes -128..127 and -127..127 have a sum that float32 holds exactly

assert EXACT_K * 128 * 127 < 2**24
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
        raise ValueError(f"An activation is quantized by {by!r}: choose block, group or row.")


def scale_shape(shape: Sequence[int], by: str) -> tuple[int, ...]:
    """Shape of the scales of codes [..., M, K]: [..., ceil(M/128), ceil(K/128)] by "block", [..., ceil(K/128), M] by
    "group", [..., M] by "row"."""
    *batch, m, k = shape
    if by == "row":
        return (*batch, m)
    return (*batch, tile_count(m), tile_count(k)) if by == "block" else (*batch, tile_count(k), m)


def scale_kind(codes: torch.Tensor, scales: torch.Tensor) -> str:
    """The one of KINDS by which codes [..., M, K] are quantized, from the shape of their scales. Raises ValueError for
    other shapes.

    A single row of a single group has the shape of "block", which then means the same."""
    for by in KINDS:
        if scales.shape == scale_shape(codes.shape, by):
            return by
    raise ValueError(
        "int8 codes [..., M, K] with scales by block [..., M/128, K/128], group [..., K/128, M] or row [..., M] are "
        f"needed: {codes.dtype} {list(codes.shape)}, {list(scales.shape)}."
    )


def empty_codes(shape: Sequence[int], by: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialized int8 codes of an activation [..., M, K] and their float32 scales."""
    codes = torch.empty(tuple(shape), dtype=torch.int8, device=device)
    return codes, torch.empty(scale_shape(shape, by), dtype=torch.float32, device=device)

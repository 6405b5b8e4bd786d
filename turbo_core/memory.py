"""How much memory a model and a step take: weights exactly, from their shapes; a step as an estimate.

The estimate is of a block's feed-forward, where a step is at its widest: beside the residual, its input and output and
one temporary of the model's width there are two activations of the feed-forward's width. Attention with few heads'
scores at a time (flash, sparse-linear) stays below that."""

import math

import torch

from .checkpoint.layout import PROJ_L, WanSpec, expected_shapes, tile_shape

STEP_FORMULA = "tokens x (bytes x (2 x feed-forward width + 4 x width) + 1024)"
_ROPE = 1024  # bytes of rotation tables for each token, float32
_TEMPORAL, _SPATIAL = 4, 16  # pixels to a token in each direction; the first frame is a token row of its own


def weight_bytes(spec: WanSpec, dtype: torch.dtype) -> int:
    """Bytes of the weights of a loaded model that computes in `dtype`: block linears in int8 with a float32 scale for
    each tile if the spec says so, all else in `dtype`."""
    total = 0
    for name, shape in expected_shapes(spec).items():
        is_tiled = spec.int8 and len(shape) == 2 and name.startswith("blocks.") and PROJ_L not in name
        total += math.prod(shape) * (1 if is_tiled else dtype.itemsize)
        total += 4 * math.prod(tile_shape(shape)) if is_tiled else 0
    return total


def tokens(width: int, height: int, frames: int) -> int:
    """Tokens of a video of so many pixels and frames."""
    return ((frames - 1) // _TEMPORAL + 1) * (width // _SPATIAL) * (height // _SPATIAL)


def step_bytes(spec: WanSpec, count: int, dtype: torch.dtype) -> int:
    """An estimate, by STEP_FORMULA, of the bytes that a step over `count` tokens takes beside the weights."""
    return count * (dtype.itemsize * (2 * spec.ffn_dim + 4 * spec.dim) + _ROPE)

"""How much memory a model and a step take: weights exactly, from their shapes; a step by one formula, which README,
Status and the memory that ComfyUI reserves for a run share.

A step needs the most memory in its first block: ComfyUI's forward passes the tokens to it in float32 and holds them
until the block returns. The formula adds the largest of three moments to these tokens and the block's residual (and the
camera's tokens of LingBot-World):

- self-attention: the normalized input that q, k and v are computed from, q, k, v and the output; in 8 bits also the
  codes of k and v;
- cross-attention, where torch has no single kernel for RMS norm: the normalized input, q, and q three times in float32;
- feed-forward: in float the normalized input, and the GELU's input and output. With int8 weights in tiles only the
  codes of the GELU's output, and the output of the block. With a scale for each channel the normalized input, and
  the GELU's output both in float and as codes, because no single program sees a whole row. With a LoRA the output of
  the first linear, the LoRA's product and their sum, all in float.

A tenth is added for what is small beside these: block maps and pooled keys, the sampler's latents, the text, buffers of
weights on their way to the device, and what the allocator rounds up."""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch

from .checkpoint.layout import PROJ_L, TILED, WanSpec, tile_shape

_ROPE = 1024  # bytes of rotation tables for each token, float32
_FLOAT32 = 4
_MARGIN = 1.1
_CODES = 1 + _FLOAT32 / 128  # bytes of an int8 code with its share of the scale of 128
_TEMPORAL, _SPATIAL = 4, 16  # frames, and pixels along each axis, of a token; the first frame has tokens of its own


Activations = Literal["float", "tiles", "channels"]


class StepForm(NamedTuple):
    """How a step is computed. `activations` of the linears: in float, as int8 codes for weights in tiles, or as codes
    for weights with a scale for each channel; `v_bytes`: of an element of v in 8-bit attention, 0 without it; `lora`:
    with low-rank products beside the linears; `camera`: with LingBot-World's camera; `fused_rms_norm`: torch has one
    kernel for RMS norm."""

    activations: Activations = "float"
    v_bytes: int = 1
    lora: bool = False
    camera: bool = False
    fused_rms_norm: bool = True


def weight_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, int8: bool) -> int:
    """Bytes of the tensors of a loaded model that computes in `dtype`, from their names and shapes before quantization;
    with `int8` block linears are int8 with a float32 scale for each tile, and all else is in `dtype`."""
    total = 0
    for name, shape in shapes.items():
        is_tiled = int8 and len(shape) == 2 and name.startswith(TILED) and PROJ_L not in name
        total += math.prod(shape) * (1 if is_tiled else dtype.itemsize)
        total += 4 * math.prod(tile_shape(shape)) if is_tiled else 0
    return total


def tokens(width: int, height: int, frames: int) -> int:
    """Tokens of a video of this width and height in pixels and this number of frames."""
    return ((frames - 1) // _TEMPORAL + 1) * (width // _SPATIAL) * (height // _SPATIAL)


def step_bytes(spec: WanSpec, count: int, dtype: torch.dtype, form: StepForm, batch: int = 1) -> int:
    """Bytes beside the weights (an estimate) of a step of a turbo network in `dtype`, with `count` tokens in each item
    of the batch."""
    dim, ffn_dim, item = spec.dim, spec.ffn_dim, dtype.itemsize
    held = (_FLOAT32 + item + (item if form.camera else 0)) * dim
    read = {"float": item * dim, "tiles": _CODES * dim, "channels": dim}[form.activations]
    if form.lora and form.activations != "float":
        read += item * dim  # the LoRA multiplies the values that were quantized
    attention = read + (4 * item + (1 + form.v_bytes if form.v_bytes else 0)) * dim
    cross_attention = 0 if form.fused_rms_norm else read + (item + 3 * _FLOAT32) * dim
    if form.lora:
        feed_forward = read + 3 * item * ffn_dim
    elif form.activations == "float":
        feed_forward = read + 2 * item * ffn_dim
    elif form.activations == "tiles":
        feed_forward = _CODES * ffn_dim + item * dim
    else:
        feed_forward = read + (item + 1) * ffn_dim
    return int(_MARGIN * count * (batch * (held + max(attention, cross_attention, feed_forward)) + _ROPE))

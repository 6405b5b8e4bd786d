"""What sparse attention is tested with: inputs, the definition in float64, how far 8-bit attention may be from it."""

import torch
import torch.nn.functional as F

from ...kernels.attention.reference import sla
from .interpreter import DEVICE
from .tensors import draw, relative

# Relative L2 and cosine of 8-bit attention against float64: what the formats cost (measured, times about 1.7).
BOUNDS = {"fp16": (2.5e-2, 0.9997), "int8": (3.5e-2, 0.9995), "fp8": (6.5e-2, 0.998)}


def qkv(length=300, d=64, b=1, h=2, dtype=torch.float32, peaked=False, device=DEVICE):
    """q, k, v [b, length, h, d]."""
    q, k, v = draw(3, b, length, h, d, seed=length + d, dtype=dtype, device=device)
    if peaked:  # sharp softmax, and keys far from zero, which smoothing has to remove
        q, k = 3 * q, k + 4 * draw(h, d, seed=1, dtype=dtype, device=device)
    return q, k, v


def exact(q, k, v, blocks, weight=None, bias=None):
    """The definition in float64, of the linear branch too where its projection is given."""
    q, k, v = (x.double() for x in (q, k, v))
    out = sla.block_sparse_attention(q, k, v, blocks)
    return out if weight is None else out + F.linear(sla.linear_attention(q, k, v), weight.double(), bias.double())


def assert_within(got, want, pv):
    error, cosine = BOUNDS[pv]
    assert relative(got, want) <= error
    assert F.cosine_similarity(got.double().flatten(), want.double().flatten(), dim=0) >= cosine

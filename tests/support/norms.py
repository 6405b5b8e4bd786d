"""Inputs and float64 oracles of the norm tests."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("comfy", reason="these tests compare with ComfyUI, which is not here")

from comfy.ldm.flux.layers import EmbedND
from comfy.ldm.flux.math import apply_rope1
from comfy.ldm.wan.model import repeat_e

EPS = 1e-6


def wan_freqs(frames, height, width, head_dim):
    """Rotations of a video of that many patches, as the host's model makes them."""
    axes = [head_dim - 4 * (head_dim // 6), 2 * (head_dim // 6), 2 * (head_dim // 6)]
    grid = torch.cartesian_prod(*(torch.arange(size).float() for size in (frames, height, width)))
    return EmbedND(head_dim, 10000.0, axes)(grid.reshape(1, -1, 3)).movedim(1, 2)


def host_rope(x, freqs):
    return apply_rope1(x, freqs)


def rotate(x, freqs):
    """[B, L, H, D] in float64: pairs as complex numbers, turned by the angle with that cosine and sine."""
    pairs, turn = (torch.view_as_complex(y.double().contiguous()) for y in (x.unflatten(3, (-1, 2)), freqs[..., 0]))
    return torch.view_as_real(pairs * turn).flatten(-2)


def exact_rms_norm_rope(x, weight, freqs, heads):
    return rotate(F.rms_norm(x.double(), weight.shape, weight.double(), EPS).unflatten(2, (heads, -1)), freqs)


def host_layer_norm_modulate(x, shift, scale):
    """As the host's block writes it; exact in float64."""
    return torch.addcmul(repeat_e(shift, x), F.layer_norm(x, x.shape[2:], eps=EPS), 1 + repeat_e(scale, x))


def error(got, exact):
    return float((got.double() - exact).abs().max())


def assert_as_good_as(got, eager, exact):
    """May err twice as much as the host in the same dtype, whose error one rounding of the output bounds from below."""
    assert got.shape == exact.shape and got.dtype == eager.dtype
    assert error(got, exact) <= 2 * (error(eager, exact) + torch.finfo(eager.dtype).eps * float(exact.abs().max()))

"""The norms of a Wan block in plain torch, against the host's own operators and the properties a faster kernel must
keep."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from td_pack.kernels.norm import reference as norm
from td_pack.kernels.norm.reference import layer_norm_modulate, layer_norm_modulate_quantize, rms_norm_rope
from td_pack.tests.support.norms import (
    EPS,
    assert_as_good_as,
    error,
    exact_rms_norm_rope,
    host_layer_norm_modulate,
    host_rope,
    wan_freqs,
)
from td_pack.tests.support.tensors import draw

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=30)
SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 3), st.sampled_from([8, 64]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads, head_dim", [(12, 128), (2, 64)])
def test_rms_norm_rope_is_the_hosts(heads, head_dim, dtype):
    width, freqs = heads * head_dim, wan_freqs(2, 3, 4, head_dim)
    x, weight = draw(2, 24, width, dtype=dtype), 1 + 0.1 * draw(width, seed=1, dtype=dtype)

    host = host_rope(F.rms_norm(x, (width,), weight, EPS).unflatten(2, (heads, -1)), freqs)
    exact = exact_rms_norm_rope(x, weight, freqs, heads)
    assert_as_good_as(rms_norm_rope(x, weight, freqs, heads=heads, eps=EPS), host, exact)
    in_double = rms_norm_rope(x.double(), weight.double(), freqs.double(), heads=heads, eps=EPS)
    assert error(in_double, exact) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length, frames", [(12, 1), (12, 3), (10, 3), (12, 12), (1, 1)])
def test_layer_norm_modulate_is_the_hosts(length, frames, dtype):
    x = 3 * draw(2, length, 256, dtype=dtype) + 1
    shift, scale = draw(2, 2, frames, 256, seed=1, dtype=dtype)
    exact = host_layer_norm_modulate(x.double(), shift.double(), scale.double())
    assert_as_good_as(layer_norm_modulate(x, shift, scale, eps=EPS), host_layer_norm_modulate(x, shift, scale), exact)
    in_double = layer_norm_modulate(x.double(), shift.double(), scale.double(), eps=EPS)
    assert error(in_double, exact) < 1e-12


@PROPERTY
@given(shape=SHAPES, seed=st.integers(0, 999))
def test_codes_are_within_half_a_step(shape, seed):
    batch, length, heads, d = shape
    x, (shift, scale) = draw(batch, length, heads * d, seed=seed), draw(2, batch, 1, heads * d, seed=seed + 1)
    codes, row_scales = layer_norm_modulate_quantize(x, shift, scale, eps=EPS)
    value = layer_norm_modulate(x, shift, scale, eps=EPS)
    assert codes.dtype == torch.int8 and row_scales.dtype == torch.float32 and row_scales.shape == (batch, length)
    assert (codes.int().abs().amax(-1) == 127).all()
    step = row_scales[..., None]
    assert ((codes * step - value).abs() <= step * (0.5 + 1e-4)).all()


def test_chunks_and_strides_change_nothing(monkeypatch):
    fused = draw(2, 12, 3 * 128)
    x, weight, freqs = fused[..., 128:256], draw(128), wan_freqs(1, 3, 4, 64)
    modulation = draw(2, 6, 128).chunk(6, dim=1)[:2]
    calls = (
        lambda x: rms_norm_rope(x, weight, freqs, heads=2, eps=EPS),
        lambda x: layer_norm_modulate(x, *modulation, eps=EPS),
        lambda x: layer_norm_modulate_quantize(x, *modulation, eps=EPS)[0],
    )
    whole = [call(x.contiguous()) for call in calls]
    monkeypatch.setattr(norm, "_CHUNK_ELEMENTS", 5 * 128)
    assert all(torch.equal(call(x), want) for call, want in zip(calls, whole, strict=True))

"""The norms of a Wan block: the definition and the kernels against the host's own operators, the kernels against the
definition. In Triton's interpreter unless there is a GPU."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.wan.vae import RMS_norm
from td_pack.kernels.int8 import format
from td_pack.kernels.int8.reference import QUANTIZERS
from td_pack.kernels.norm import format as norm_format
from td_pack.kernels.norm import reference
from td_pack.kernels.norm.triton import layer_norm, rms_norm, rms_norm_silu
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.norms import (
    EPS,
    assert_as_good_as,
    error,
    exact_rms_norm_rope,
    host_layer_norm_modulate,
    host_rope,
    rotate,
    wan_freqs,
)
from td_pack.tests.support.poison import poisoned_memory
from td_pack.tests.support.tensors import DTYPES, draw

poisoned = poisoned_memory(format, norm_format, rms_norm, layer_norm)


def implementations(kernels):
    """A module of kernels and the definition, each with the dtypes that it is tested in."""
    runs = [(kernels, dtype) for dtype in DTYPES]
    runs += [(reference, dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
    return pytest.mark.parametrize("module, dtype", runs)


def rope(x, weight, freqs, heads, module=rms_norm):
    return module.rms_norm_rope(x, weight, freqs, heads=heads, eps=EPS)


def rope_inputs(batch, length, heads, head_dim, dtype=torch.float32):
    width = heads * head_dim
    weight = 1 + 0.1 * draw(width, seed=1, dtype=dtype)
    diagonal = slice(None, None, length * length + length + 1)  # tokens whose rotations differ in all axes
    freqs = wan_freqs(length, length, length, head_dim)[:, diagonal].contiguous()
    return draw(batch, length, width, dtype=dtype).to(DEVICE), weight.to(DEVICE), freqs.to(DEVICE)


def modulate(x, shift, scale, module=layer_norm):
    return module.layer_norm_modulate(x, shift, scale, eps=EPS)


def quantize(x, shift, scale, module=layer_norm, by="row"):
    return module.layer_norm_modulate_quantize(x, shift, scale, eps=EPS, by=by)


quantize_block = partial(quantize, by="block")
quantize_group = partial(quantize, by="group")


def modulate_inputs(batch, length, width, frames=1, dtype=torch.float32):
    shift, scale = draw(2, batch, frames, width, seed=1, dtype=dtype).to(DEVICE)
    return (3 * draw(batch, length, width, dtype=dtype) + 1).to(DEVICE), shift, scale


def assert_codes_match(got, want, rtol=1e-5):
    """In the interpreter the row sums may come in another order, so a value on the edge of a code may go either way."""
    (codes, scales), (want_codes, want_scales) = got, want
    torch.testing.assert_close(scales, want_scales, rtol=rtol, atol=0)
    difference = (codes.int() - want_codes.int()).abs()
    assert difference.max() <= 1 and difference.float().mean() < 2e-3


@implementations(rms_norm)
@pytest.mark.parametrize("heads, head_dim, length", [(12, 128, 17), (1, 64, 1), (3, 64, 17)])
def test_rope_is_the_hosts(heads, head_dim, length, module, dtype):
    inputs = x, weight, freqs = rope_inputs(2, length, heads, head_dim, dtype)
    host = host_rope(F.rms_norm(x, weight.shape, weight, EPS).unflatten(2, (heads, -1)), freqs)
    exact = exact_rms_norm_rope(*inputs, heads)
    assert_as_good_as(rope(*inputs, heads, module), host, exact)
    if module is reference:
        assert error(rope(*(each.double() for each in inputs), heads, module), exact) < 1e-12


@implementations(layer_norm)
@pytest.mark.parametrize(
    "width, length, frames", [(256, 1, 1), (1536, 7, 1), (256, 12, 3), (100, 10, 3), (100, 7, 1), (256, 12, 12)]
)
def test_modulate_is_the_hosts(width, length, frames, module, dtype):
    inputs = modulate_inputs(2, length, width, frames, dtype)
    in_double = [each.double() for each in inputs]
    exact = host_layer_norm_modulate(*in_double)
    assert_as_good_as(modulate(*inputs, module), host_layer_norm_modulate(*inputs), exact)
    codes, scales = quantize(*inputs, module)
    if module is not reference:
        assert_codes_match((codes, scales), quantize(*inputs, reference))
        return
    assert error(modulate(*in_double, module), exact) < 1e-12
    value, step = modulate(*(each.float() for each in inputs), module), scales[..., None]
    assert codes.dtype == torch.int8 and scales.dtype == torch.float32 and scales.shape == (2, length)
    assert (codes.int().abs().amax(-1) == 127).all()
    assert ((codes * step - value).abs() <= step * (0.5 + 1e-4)).all()


def test_chunks_and_strides_change_nothing(monkeypatch):
    fused = draw(2, 12, 3 * 128)
    x, weight, freqs = fused[..., 128:256], draw(128), wan_freqs(1, 3, 4, 64)
    modulation = draw(2, 6, 128).chunk(6, dim=1)[:2]
    calls = (
        lambda x: rope(x, weight, freqs, 2, reference),
        lambda x: modulate(x, *modulation, reference),
        lambda x: quantize(x, *modulation, reference)[0],
    )
    whole = [call(x.contiguous()) for call in calls]
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 5 * 128)
    assert all(torch.equal(call(x), want) for call, want in zip(calls, whole, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "by, batch, length, frames, width",
    [("block", 1, 1, 1, 128), ("block", 2, 127, 1, 300), ("block", 1, 129, 1, 100)]
    + [("block", 2, 130, 3, 300), ("block", 2, 130, 3, 128), ("block", 1, 5, 5, 100)]
    # One group; then the last group of each part of a row whole, cut or missing.
    + [("group", 2, 4, 1, width) for width in (100, 128, 256, 1300, 1536)]
    + [("group", 2, 4, 3, width) for width in (129, 1100)],
)
def test_quantized_by_block_and_group(by, batch, length, frames, width, dtype):
    inputs = modulate_inputs(batch, length, width, frames, dtype)
    got = quantize(*inputs, by=by)
    # Rounded to a half, a value may be its neighbor, which can be a scale.
    assert_codes_match(got, quantize(*inputs, reference, by=by), rtol=max(1e-5, torch.finfo(dtype).eps))
    if DEVICE.type == "cpu":  # the codes are the quantizer's of the other kernel's values, to the bit
        apart = QUANTIZERS[by](modulate(*inputs))
        assert torch.equal(got[0], apart[0]) and torch.equal(got[1], apart[1])


def test_width_of_the_14b_model():
    inputs = rope_inputs(1, 3, 40, 128)
    assert error(rope(*inputs, 40), exact_rms_norm_rope(*inputs, 40)) < 1e-5
    inputs = modulate_inputs(1, 3, 5120)
    assert error(modulate(*inputs), host_layer_norm_modulate(*(x.double() for x in inputs))) < 1e-5
    assert_codes_match(quantize(*inputs), quantize(*inputs, reference))
    assert_codes_match(quantize_block(*inputs), quantize_block(*inputs, reference))
    assert_codes_match(quantize_group(*inputs), quantize_group(*inputs, reference))


def test_float32_weight_and_modulation_of_half_inputs():
    """Norm weights of a quantized checkpoint are float32."""
    x, weight, freqs = rope_inputs(1, 5, 2, 64, torch.float16)
    assert torch.equal(rope(x, weight.float(), freqs, 2), rope(x, weight, freqs, 2))
    x, shift, scale = modulate_inputs(1, 5, 128, dtype=torch.float16)
    assert torch.equal(modulate(x, shift.float(), scale.float()), modulate(x, shift, scale))


def test_normed_values_are_rounded_before_they_are_rotated():
    x, weight, freqs = rope_inputs(1, 9, 2, 64, torch.float16)
    rounded = F.rms_norm(x.double(), weight.shape, weight.double(), EPS).half()
    want = rotate(rounded.unflatten(2, (2, 64)), freqs).half()
    assert (rope(x, weight, freqs, 2) == want).float().mean() > 0.99  # unrounded, a third differs


def test_views_of_a_fused_projection_and_of_the_modulation():
    x, weight, freqs = rope_inputs(2, 6, 6, 64)
    view = x[..., 128:256]
    assert torch.equal(rope(view, weight[:128], freqs, 2), rope(view.contiguous(), weight[:128], freqs, 2))
    six = draw(2, 6, 128, seed=3).to(DEVICE)
    four_frames = draw(2, 3, 6, 128, seed=4).to(DEVICE)
    for shift, scale in (six.chunk(6, dim=1)[1:3], four_frames.unbind(2)[1:3]):
        got, want = modulate(view, shift, scale), modulate(view.contiguous(), shift.contiguous(), scale.contiguous())
        assert torch.equal(got, want)
        for quantizer in (quantize, quantize_block, quantize_group):
            parts = zip(quantizer(view, shift, scale), quantizer(view.contiguous(), shift, scale), strict=True)
            assert all(torch.equal(a, b) for a, b in parts)


def test_token_of_zeros():
    x, zeros = torch.zeros(1, 2, 64, device=DEVICE), torch.zeros(1, 1, 64, device=DEVICE)
    for norm, layer in ((rms_norm, layer_norm), (reference, reference)):
        assert not rope(x, torch.ones(64, device=DEVICE), wan_freqs(1, 1, 2, 64).to(DEVICE), 1, norm).any()
        for codes, scales in (quantize(x, zeros, zeros, layer, by) for by in format.KINDS):
            assert not codes.any() and (scales > 0).all() and (scales < 1e-9).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_value_stays_in_its_token(bad):
    x, weight, freqs = rope_inputs(1, 3, 1, 64)
    x[0, 1, 7] = bad
    given = x, *torch.zeros(2, 1, 1, 64, device=DEVICE)
    for norm, layer in ((rms_norm, layer_norm), (reference, reference)):
        scales = quantize(*given, layer)[1][..., None]
        for out in (rope(x, weight, freqs, 1, norm).flatten(2), modulate(*given, layer), scales):
            assert out.isfinite().all(-1).tolist() == [[True, False, True]]
        assert not quantize_block(*given, layer)[1].isfinite().any()
        assert quantize_group(*given, layer)[1].isfinite().tolist() == [[[True, False, True]]]


def host_norm_silu(x, weight):
    """As the VAE's residual block computes it; exact in float64."""
    norm = RMS_norm(x.shape[1], images=False).to(x)
    norm.gamma.data = weight.view(-1, 1, 1, 1)
    return F.silu(norm(x))


@implementations(rms_norm_silu)
@pytest.mark.parametrize(
    "channels, channels_last, length", [(96, True, 2), (96, False, 1), (6, True, 3), (6, False, 2), (384, True, 2)]
)
def test_the_input_of_a_causal_convolution(channels, channels_last, length, module, dtype):
    """Of two chunks in a row, beside the norm of all frames at once. 21 pixels are, with 384 channels, two blocks and a
    rest, with fewer one block that is not full."""
    weight = (1 + 0.1 * draw(channels, seed=1, dtype=dtype)).to(DEVICE)
    x = draw(2, 1 + 2 * length, 3, 7, channels, dtype=dtype).to(DEVICE).movedim(-1, 1)
    x = x if channels_last else x.contiguous()
    exact = host_norm_silu(x.double(), weight.double())
    first, *chunks = x.split((1, length, length), 2)
    y = module.rms_norm_silu_pad(first, weight, None)
    past = torch.cat((torch.zeros_like(y), y), 2)
    expected = F.pad(exact, (0, 0, 0, 0, 1, 0))
    torch.testing.assert_close(y, expected[:, :, 1:2], **within(dtype, module), check_dtype=False)
    for i, chunk in enumerate(chunks):
        y = module.rms_norm_silu_pad(chunk, weight, past)
        assert y.dtype == dtype and (y.stride(1) == 1) == channels_last or module is reference
        here = expected[:, :, i * length : (i + 1) * length + 2]
        torch.testing.assert_close(y, here, **within(dtype, module), check_dtype=False)
        assert torch.equal(past, y[:, :, -2:])
    if module is reference:
        assert torch.equal(y[:, :, 2:], host_norm_silu(chunks[1], weight))


def within(dtype, module):
    """A kernel rounds once: half a unit in the last place, and another half for float32's own errors. The definition
    rounds as the host does, after the norm, the division, two products and SiLU: three units."""
    return dict(rtol=torch.finfo(dtype).eps * (3 if module is reference else 1), atol=1e-6)

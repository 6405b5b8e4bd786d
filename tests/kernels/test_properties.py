"""Properties of the kernels for drawn shapes and seeds, in Triton's interpreter. (Those of the definitions
are in test_sla.py, test_int8.py and test_norm.py; few small programs each, for the interpreter takes milliseconds for
one.)"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from td_pack import kernels
from td_pack.kernels import use_backend
from td_pack.kernels.attention.format import selected_blocks
from td_pack.kernels.attention.reference import sla as reference
from td_pack.tests.support.interpreter import DEVICE  # isort: split

from td_pack.kernels.attention.triton import sage, sla  # after the interpreter is on

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=12)
SEED = st.integers(0, 999)
SIZE = st.integers(1, 200)
LENGTH = st.integers(1, 200)
BY = st.sampled_from(["block", "row"])
pytestmark = [
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of numpy, which interprets
    pytest.mark.skipif(
        DEVICE.type == "cuda", reason="the kernels take float32 in the interpreter alone; test_triton_* run on GPUs"
    ),
]


@pytest.fixture(autouse=True)
def on_triton():
    with use_backend("triton"):
        yield


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def qkv(length: int, seed: int, heads: int = 1) -> torch.Tensor:
    return draw(3, 1, length, heads, 64, seed=seed)


def definition(operator, *given, **options):
    with use_backend("torch"):
        return operator(*given, **options)


@PROPERTY
@given(batch=st.integers(1, 2), m=SIZE, k=SIZE, by=BY, power=st.integers(-8, 8), seed=SEED)
def test_codes_are_the_definitions_and_scale_with_powers_of_two(batch, m, k, by, power, seed):
    x = draw(batch, m, k, seed=seed)
    codes, scales = kernels.int8_quantize(x, by)
    want = definition(kernels.int8_quantize, x, by)
    assert torch.equal(codes, want[0]) and torch.equal(scales, want[1])
    again = kernels.int8_quantize(x * 2.0**power, by)
    assert torch.equal(again[0], codes) and torch.equal(again[1], scales * 2.0**power)


@PROPERTY
@given(m=SIZE, n=SIZE, k=SIZE, by=BY, seed=SEED)
def test_products_are_the_definitions_and_rows_and_padding_are_inert(m, n, k, by, seed):
    x, weight = draw(1, m, k, seed=seed), kernels.quantize_block(draw(n, k, seed=seed + 1))
    y = kernels.int8_linear(x, *weight, None, by)
    torch.testing.assert_close(y, definition(kernels.int8_linear, x, *weight, None, by), rtol=1e-5, atol=1e-5)
    order = torch.randperm(m, generator=torch.Generator().manual_seed(seed))
    if by == "row":
        assert torch.equal(kernels.int8_linear(x[:, order], *weight, None, by), y[:, order])
    codes, scales = kernels.int8_quantize(x, by)
    wide = (-k) % 128  # zeros up to the tile's edge
    padded = kernels.int8_matmul(F.pad(codes, (0, wide)), scales, F.pad(weight[0], (0, wide)), weight[1], None, y.dtype)
    assert torch.equal(padded, y)


@PROPERTY
@given(
    batch=st.integers(1, 2), length=st.integers(1, 140), width=st.integers(1, 150), frames=st.integers(1, 3), seed=SEED
)
def test_fused_quantization_is_that_of_the_rounded_values(batch, length, width, frames, seed):
    x = (3 * draw(batch, length, width, seed=seed) + 1).half()
    shift, scale = draw(2, batch, min(frames, length), width, seed=seed + 1)
    fused = kernels.layer_norm_modulate_quantize(x, shift, scale)
    apart = kernels.int8_quantize(kernels.layer_norm_modulate(x, shift, scale))
    assert fused[0].shape == x.shape and fused[1].shape == apart[1].shape
    assert torch.equal(fused[0], apart[0]) and torch.equal(fused[1], apart[1])


@PROPERTY
@given(length=st.integers(1, 9), heads=st.integers(1, 3), power=st.integers(-8, 8), seed=SEED)
def test_rms_norm_ignores_a_power_of_two_and_rotation_keeps_lengths(length, heads, power, seed):
    x, weight = draw(1, length, heads * 64, seed=seed), draw(heads * 64, seed=seed + 1)
    turn = draw(length, 32, seed=seed + 2)
    freqs = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1).view(1, length, 1, 32, 2, 2)
    y = kernels.rms_norm_rope(x, weight, freqs, heads, 0.0)
    torch.testing.assert_close(kernels.rms_norm_rope(x * 2.0**power, weight, freqs, heads, 0.0), y)
    lengths = F.rms_norm(x, (heads * 64,), weight, 0.0).unflatten(2, (heads, 32, 2)).norm(dim=-1)
    torch.testing.assert_close(y.unflatten(3, (32, 2)).norm(dim=-1), lengths)


@PROPERTY
@given(length=LENGTH, topk=st.floats(0.01, 1.0), seed=SEED)
def test_the_map_lists_the_right_number_of_blocks_once_in_order(length, topk, seed):
    q, k, _ = qkv(length, seed)
    blocks = sla.block_map(q, k, topk)
    assert blocks.shape == (1, 1, -(-length // 128), selected_blocks(length, topk))
    assert (blocks.diff(dim=-1) > 0).all() and blocks.min() >= 0 and blocks.max() < -(-length // 64)
    assert torch.equal(blocks, reference.block_map(q, k, topk))


@PROPERTY
@given(length=LENGTH, seed=SEED)
def test_every_block_listed_is_dense_attention(length, seed):
    q, k, v = qkv(length, seed)
    dense = F.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    out = kernels.sparse_linear_attention(q, k, v, None, None, 1.0)
    torch.testing.assert_close(out.double(), dense, rtol=1e-4, atol=1e-5)
    assert (out <= v.amax(1, keepdim=True) + 1e-5).all() and (out >= v.amin(1, keepdim=True) - 1e-5).all()


@PROPERTY
@given(length=LENGTH, topk=st.floats(0.01, 1.0), pv=st.sampled_from(["", "fp16", "int8"]), seed=SEED)
def test_constant_values_come_out_constant(length, topk, pv, seed):
    q, k, _ = qkv(length, seed)
    v = torch.linspace(-2, 2, 64).expand(1, length, 1, 64).contiguous()
    out = kernels.sparse_linear_attention(q, k, v, None, None, topk, pv)
    # Weights that are rounded to 8 bits or half add up to one only about as well.
    tolerance = {"": 1e-5, "fp16": 2e-3, "int8": 2e-2}[pv]
    torch.testing.assert_close(out, v, rtol=tolerance, atol=tolerance)


@PROPERTY
@given(order=st.permutations(range(3)), topk=st.sampled_from((0.34, 0.67, 1.0)), seed=SEED)
def test_the_order_of_key_blocks_does_not_matter(order, topk, seed):
    q, k, v = qkv(192, seed)
    tokens = (torch.tensor(order)[:, None] * 64 + torch.arange(64)).flatten()
    moved = kernels.sparse_linear_attention(q, k[:, tokens], v[:, tokens], None, None, topk)
    torch.testing.assert_close(moved, kernels.sparse_linear_attention(q, k, v, None, None, topk), rtol=1e-4, atol=1e-5)


@PROPERTY
@given(length=LENGTH, offset=st.floats(-4, 4), seed=SEED)
def test_a_constant_added_to_every_key_changes_no_attention(length, offset, seed):
    """It adds one constant to each row of scores."""
    q, k, v = qkv(length, seed)
    shifted = k + offset * draw(64, seed=seed + 1)
    blocks = sla.block_map(q, k, 0.5)
    out = sla.block_sparse_attention(q, k, v, blocks)
    torch.testing.assert_close(sla.block_sparse_attention(q, shifted, v, blocks), out, rtol=1e-3, atol=1e-4)
    quantized = (sage.sage_block_sparse_attention(q, x, v, blocks, pv="fp16") for x in (k, shifted))
    assert torch.linalg.vector_norm(torch.sub(*quantized)) <= 2.5e-2 * torch.linalg.vector_norm(out)


@PROPERTY
@given(length=LENGTH, order=st.permutations(range(3)), seed=SEED)
def test_heads_are_independent(length, order, seed):
    q, k, v = qkv(length, seed, heads=3)
    weight, bias = draw(64, 64, seed=1) / 8, draw(64, seed=2)
    out = kernels.sparse_linear_attention(q, k, v, weight, bias, 0.5)
    moved = kernels.sparse_linear_attention(*(x[:, :, order] for x in (q, k, v)), weight, bias, 0.5)
    assert torch.equal(moved, out[:, :, order])

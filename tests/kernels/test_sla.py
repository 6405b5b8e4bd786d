"""Sparse-linear attention in plain torch, against golden outputs, float64 formulas written here and the definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from td_pack.kernels.attention.batched import sla as batched
from td_pack.kernels.attention.batched.sla import block_sparse_attention
from td_pack.kernels.attention.reference import sla
from td_pack.kernels.attention.reference.sla import block_map, linear_attention
from td_pack.tests.support import checkpoints
from td_pack.tests.support.tensors import relative

LENGTHS = (1, 63, 64, 65, 127, 128, 129, 500, 640, 1000)
BLOCKS = ((128, 64), (64, 64))
PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=20)


def draw(length, heads=2, width=64, batch=1, dtype=torch.float32, seed=0):
    """q, k, v of standard normal values, [B, L, H, D]."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, length, heads, width, generator=generator).to(dtype) for _ in range(3)]


def dense_masked(q, k, v, blocks, block_q=128, block_k=64):
    """The same attention as a full matrix in the inputs' precision, where unlisted keys have weight zero."""
    rows, columns = (torch.arange(x.shape[1]) // block for x, block in ((q, block_q), (k, block_k)))
    listed = torch.zeros(*blocks.shape[:3], int(columns[-1]) + 1, dtype=torch.bool).scatter(-1, blocks, True)
    scores = torch.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(q.shape[-1])
    weights = scores.masked_fill(~listed[:, :, rows][..., columns], -math.inf).softmax(-1)
    return torch.einsum("bhlm,bmhd->blhd", weights, v)


def linear_formula(q, k, v):
    """Linear attention as a full matrix of weights phi(q) phi(k)^T."""
    weights = torch.einsum("blhd,bmhd->bhlm", q.softmax(-1), k.softmax(-1))
    return torch.einsum("bhlm,bmhd->blhd", weights / (weights.sum(-1, keepdim=True) + 1e-5), v)


def assert_as_good_as(got, eager, exact):
    """`got` may err twice as much as the plain computation in the same dtype, whose error one rounding step of the
    output bounds from below."""
    assert got.shape == exact.shape and got.dtype == eager.dtype
    error, eager_error = ((x.double() - exact).abs().max() for x in (got, eager))
    assert error <= 2 * (eager_error + torch.finfo(eager.dtype).eps * exact.abs().max())


@pytest.mark.parametrize("name", ["a", "b"])
def test_golden_operator(name):
    cases, tensors = checkpoints.golden_case("ops")
    case = cases[name]
    q, k, v = (tensors[f"{name}.{x}"] for x in "qkv")
    blocks = block_map(q, k, case["topk"], case["block_q"], case["block_k"])
    want = tensors[f"{name}.block_map"].bool()
    assert blocks.shape[-1] == case["selected"]
    assert torch.equal(torch.zeros_like(want).scatter(-1, blocks, True), want)
    weight, bias = tensors[f"{name}.proj_weight"], tensors[f"{name}.proj_bias"]
    out = block_sparse_attention(q, k, v, blocks, case["block_q"], case["block_k"])
    out = out + F.linear(linear_attention(q, k, v), weight, bias)
    assert relative(out, tensors[f"{name}.out"]) <= 1e-5  # both ran in float32; golden/README


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_sparse_branch_is_masked_dense_attention(length, dtype):
    for heads, width, batch, topk in ((1, 128, 1, 0.01), (3, 64, 1, 0.5), (1, 64, 2, 1.0)):
        q, k, v = draw(length, heads, width, batch, dtype)
        blocks = block_map(q, k, topk)
        exact = dense_masked(q.double(), k.double(), v.double(), blocks)
        out = block_sparse_attention(q, k, v, blocks)
        assert_as_good_as(out, dense_masked(q, k, v, blocks), exact)


@PROPERTY
@given(
    length=st.integers(1, 700),
    topk=st.floats(0.01, 1.0),
    block=st.sampled_from(BLOCKS),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    seed=st.integers(0, 2**32),
)
def test_block_map_lists_the_best_blocks_once_in_order(length, topk, block, dtype, seed):
    """By the means of the tokens that are in a block, a ragged last one included."""
    q, k, _ = draw(length, heads=3, width=16, batch=2, dtype=dtype, seed=seed)
    blocks = block_map(q, k, topk, *block)
    rows, columns = -(-length // block[0]), -(-length // block[1])
    assert blocks.dtype == torch.int64
    assert blocks.shape == (2, 3, rows, max(1, math.floor(topk * columns)))
    assert (blocks.diff(dim=-1) > 0).all() and blocks.min() >= 0 and blocks.max() < columns
    means = [
        torch.stack([part.double().mean(1) for part in x.split(size, 1)], 2)
        for x, size in ((q, block[0]), (k, block[1]))
    ]
    scores = means[0] @ means[1].transpose(-1, -2)
    listed = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, blocks, True)
    worst, best_left = scores.masked_fill(~listed, math.inf).amin(-1), scores.masked_fill(listed, -math.inf).amax(-1)
    assert (
        worst >= best_left - 1e-5 * scores.abs().max()
    ).all()  # the means are float32: a near tie may fall either way


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [448, 700])
def test_block_means_and_scores_are_float32(length, dtype):
    """Rounded to the inputs' precision, close scores would tie and fall to the lower block."""
    q, k, _ = draw(length, heads=3, width=128, batch=2, dtype=dtype)
    assert torch.equal(block_map(q, k, 0.4), block_map(q.float(), k.float(), 0.4))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_ties_go_to_the_lower_block(value):
    blocks = block_map(*[torch.full((1, 640, 2, 16), value)] * 2, 0.35)
    assert torch.equal(blocks, torch.arange(3).expand(1, 2, 5, 3))


@pytest.mark.parametrize("heads, width, batch", [(1, 128, 2), (3, 64, 1), (5, 128, 1)])
@pytest.mark.parametrize("length, keys", [(length, length) for length in LENGTHS] + [(200, 449), (449, 200)])
def test_the_fast_form_is_the_definition(length, keys, heads, width, batch):
    """On strided views, with blocks of two sizes, several batches of query blocks and of heads."""
    q = torch.stack(draw(length, heads, width, batch, torch.float64), dim=-1)[..., 0]
    k, v = torch.stack(draw(keys, heads, width, batch, torch.float64, seed=1), dim=-1).unbind(-1)[1:]
    weight, bias = torch.linspace(-1, 1, width * width, dtype=torch.float64).view(width, width), q[0, 0, 0]
    for topk, block in ((0.4, BLOCKS[0]), (0.9, BLOCKS[1])):
        sizes = dict(zip(("block_q", "block_k"), block, strict=True))
        for branch in ((None, None), (weight, bias)):
            want = sla.sparse_linear_attention(q, k, v, *branch, topk=topk, **sizes)
            got = batched.sparse_linear_attention(q, k, v, *branch, topk=topk, **sizes)
            assert got.is_contiguous()
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)  # other summation order, float64


def test_the_fast_form_stays_on_its_device():
    """All its temporaries; "meta" refuses tensors of another device, as a GPU does."""
    q, k, v, weight = (x.to("meta") for x in (*draw(100), torch.empty(64, 64)))
    for branch in ((None, None), (weight, weight[0])):
        assert batched.sparse_linear_attention(q, k, v, *branch, topk=0.5).is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_fast_form_rounds_each_branch_once(dtype):
    """The sparse branch, then its sum with the linear one, which is computed in float32."""
    q, k, v = draw(300, dtype=dtype)
    branch = torch.linspace(-1, 1, 64 * 64).view(64, 64).to(dtype), q[0, 0, 0]
    exact = sla.sparse_linear_attention(*(x.double() for x in (q, k, v, *branch)), topk=0.4)
    got = batched.sparse_linear_attention(q, k, v, *branch, topk=0.4)
    assert relative(got, exact) <= torch.finfo(dtype).eps


def test_no_listed_block_gives_zeros():
    q, k, v = draw(200)
    out = block_sparse_attention(q, k, v, torch.zeros((1, 2, 2, 0), dtype=torch.int32))
    assert torch.equal(out, torch.zeros_like(q))


@pytest.mark.parametrize("elements", [1, 3 * 64 * 64 * 2])
@pytest.mark.parametrize("length", [300, 448])
def test_chunks_do_not_change_the_result(monkeypatch, length, elements):
    q, k, v = draw(length, heads=3, batch=2, dtype=torch.float64)
    weight, bias = torch.randn(64, 64, dtype=torch.float64), q[0, 0, 0]
    forms = [module.sparse_linear_attention for module in (sla, batched)]
    whole = [form(q, k, v, weight, bias, topk=0.5) for form in forms]
    monkeypatch.setattr(sla, "_CHUNK_ELEMENTS", elements)
    monkeypatch.setattr(batched, "_CHUNK_ELEMENTS", elements)
    for form, want in zip(forms, whole, strict=True):
        # A matrix product of fewer heads or tokens at once sums in another order, in float64.
        torch.testing.assert_close(form(q, k, v, weight, bias, topk=0.5), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_linear_branch_is_its_formula(length):
    q, k, v = draw(length, heads=3, width=128, batch=2)
    exact = linear_formula(q.double(), k.double(), v.double())
    assert relative(linear_attention(q, k, v), exact) <= 1e-6  # about 8 float32 roundings; measured 2e-7
    torch.testing.assert_close(linear_attention(q.double(), k.double(), v.double()), exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_linear_branch_rounds_only_its_result(dtype):
    """Computed in float32: against it the output differs by the last rounding, half an eps."""
    q, k, v = draw(300, dtype=dtype)
    in_float32 = linear_attention(q.float(), k.float(), v.float())
    assert torch.equal(linear_attention(q, k, v), in_float32.to(dtype))

"""Which key blocks a query block attends to, in Triton: the map of the plain torch reference, ties included.

Runs in the interpreter without a GPU, and for real with one."""

from functools import partial

import pytest
import torch
from td_pack.kernels.attention.format import block_count
from td_pack.kernels.attention.reference import sla as reference
from td_pack.kernels.attention.triton import block_selection as maps
from td_pack.kernels.attention.triton.block_selection import block_map
from td_pack.tests.support import tensors
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.poison import poisoned_memory
from td_pack.tests.support.tensors import DTYPES, structured_qkv

draw = partial(tensors.draw, device=DEVICE)


@pytest.fixture(autouse=True)
def poisoned():
    with poisoned_memory(maps, reference):
        yield


def stable_top(scores: torch.Tensor, selected: int) -> torch.Tensor:
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :selected].sort(dim=-1).values.int()


@pytest.mark.parametrize("n", [1, 2, 31, 33, 512, 1182, maps.MAX_FUSED_BLOCKS, maps.MAX_FUSED_BLOCKS + 1])
def test_top_blocks_are_those_of_a_stable_sort(n):
    random, tied = draw(1, 2, 2, n, seed=n), draw(1, 2, 2, n, seed=n).round()
    tied[0, 0, 0] *= 0.0  # both zeros: equal
    tied[0, 1, 0, n // 2] = float("-inf")
    tied[0, 1, 1, n - 1] = float("nan")
    tied[0, 1, 1, 0] = -float("nan")
    for scores in (random, tied):
        for selected in sorted({1, max(1, n // 10), n}):
            assert torch.equal(maps._top_blocks(scores, selected), stable_top(scores, selected))


@pytest.mark.parametrize("block_q", [64, 128])
@pytest.mark.parametrize("length", [1, 65, 500])
def test_map_of_exact_scores_is_the_reference_map(length, block_q):
    """Tokens equal within a block and small integers: means and scores are exact, ties are frequent."""
    values = draw(2, 1, block_count(length, 128), 2, 64, seed=length).round()
    q, k = values.repeat_interleave(128, 2)[:, :, :length]
    k = k * draw(length // 64 + 1, seed=4).round().repeat_interleave(64)[:length, None, None]
    for topk in (0.01, 0.4, 7.0):
        found, expected = block_map(q, k, topk, block_q), reference.block_map(q, k, topk, block_q)
        assert torch.equal(found.long(), expected)


def test_equal_scores_go_to_the_lower_block():
    q, k, _ = structured_qkv(640)
    blocks = block_map(q.round(), torch.ones_like(k), 0.3)  # rounded: numpy's edge columns are summed in another order
    assert torch.equal(blocks, torch.arange(3, dtype=torch.int32, device=DEVICE).expand_as(blocks))


@pytest.mark.parametrize("dtype", DTYPES)
def test_map_of_random_scores(dtype):
    q, k, _ = structured_qkv(1000, d=128, b=2, dtype=dtype)
    blocks = block_map(q, k, 0.4)
    assert blocks.shape == (2, 2, 8, 6) and (blocks.diff(dim=-1) > 0).all()
    scores = reference._pool(q.double(), 128) @ reference._pool(k.double(), 64).mT
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, blocks.long(), True)
    worst, best = scores.masked_fill(~chosen, torch.inf).amin(-1), scores.masked_fill(chosen, -torch.inf).amax(-1)
    assert (worst >= best - 1e-5 * scores.abs().amax(-1)).all()  # float32 cannot order what is closer
    assert torch.equal(blocks.long(), reference.block_map(q, k, 0.4))

"""Tokens and heads between real gloo ranks."""

import pytest
import torch
from td_pack.tests.support.checkpoints import draw
from td_pack.tests.support.ranks import on_ranks
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.parallel.group import GroupError
from td_pack.turbo_core.parallel.shares import check_heads, exchanged_bytes, token_slices

HEADS, WIDTH = 12, 8


@pytest.mark.parametrize("tokens, ranks", [(256, 2), (257, 2), (1000, 3), (32760, 4), (75600, 8), (1024, 8)])
def test_every_rank_has_whole_tiles_and_together_they_have_all(tokens, ranks):
    shares = token_slices(tokens, ranks)
    assert [token for share in shares for token in range(tokens)[share]] == list(range(tokens))
    assert all(share.start % 128 == 0 for share in shares)
    lengths = [share.stop - share.start for share in shares]
    assert 0 < min(lengths) and max(lengths) - min(lengths) < 256


def test_what_cannot_be_divided_is_a_sentence_with_what_can():
    with pytest.raises(TurboError, match="one of 2, 3, 4, 6, 12"):
        check_heads(12, 5)
    with pytest.raises(TurboError, match="256 tokens, 2 tiles of 128, too few for 3 GPUs"):
        token_slices(256, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ranks, tokens, batch", [(2, 300, 2), (3, 1000, 1), (4, 513, 1)])
def test_tokens_become_heads_and_tokens_again(ranks, tokens, batch, dtype):
    whole = [draw(i, "qkv", (batch, tokens, HEADS, WIDTH)).to(dtype) for i in range(3)]
    shares = token_slices(tokens, ranks)

    def run(group):
        own = shares[group.rank]
        heads = slice(group.rank * HEADS // ranks, (group.rank + 1) * HEADS // ranks)
        q, k, v = group.to_heads(*(each[:, own] for each in whole), shares)
        for mine, each in zip((q, k, v), whole, strict=True):
            assert torch.equal(mine, each[:, :, heads])
        back = group.to_tokens(v.flatten(2), shares)
        assert torch.equal(back, whole[2][:, own].flatten(2))
        expected = batch * exchanged_bytes(tokens, group.rank, ranks, HEADS * WIDTH, dtype.itemsize)
        assert group.sent == expected
        assert torch.equal(group.gather(back, shares), whole[2].flatten(2))
        sent = whole[0] if group.rank == 0 else torch.empty_like(whole[0])
        assert torch.equal(group.broadcast(sent), whole[0])
        return group.sent - expected

    gathered = on_ranks(ranks, run)
    assert sum(gathered) == (ranks - 1) * whole[0].numel() * dtype.itemsize


def test_all_ranks_together_send_what_docs_scaling_says():
    """(ranks - 1) / ranks of q, k, v and the output, once each."""
    tokens, dim, ranks = 75648, 5120, 4
    total = sum(exchanged_bytes(tokens, rank, ranks, dim, 2) for rank in range(ranks))
    assert total == 4 * tokens * dim * 2 * (ranks - 1) // ranks


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_rank_that_fails_ends_the_others(failing):
    def run(group):
        group.gather(torch.zeros(1, 128, 4), token_slices(384, 3))
        if group.rank == failing:
            return "failed"
        with pytest.raises(GroupError, match="could not reach each other"):
            group.gather(torch.zeros(1, 128, 4), token_slices(384, 3))
        with pytest.raises(GroupError):  # and at once, from now on
            group.abort()
            group.broadcast(torch.zeros(1))
        return "ended"

    assert sorted(on_ranks(3, run)) == ["ended", "ended", "failed"]

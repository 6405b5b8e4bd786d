"""Strips cover a side, share enough with their neighbors, and blend without a jump."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from td_pack.turbo_core.strips import OVERLAP, SMALLEST, blend, counts, shared, strips


@given(st.integers(1, 400))
def test_every_cut_covers_the_side(length):
    for count in counts(length):
        cut = strips(length, count)
        assert len(cut) == count and cut[0].start == 0 and cut[-1].stop == length
        assert len({strip.stop - strip.start for strip in cut}) == 1
        assert count == 1 or cut[0].stop >= SMALLEST
        assert shared(cut)[0] == 0 and all(overlap >= OVERLAP for overlap in shared(cut)[1:])


@given(st.integers(1, 400))
def test_more_strips_are_smaller(length):
    sizes = [strips(length, count)[0].stop for count in counts(length)]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_blend_goes_straight_from_one_to_the_other(axis):
    old, new = torch.zeros(4, 4), torch.ones(4, 4)
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875])
    assert torch.equal(blend(old, new, axis), expected.view(4, 1).expand(4, 4) if axis == 0 else expected.expand(4, 4))


def test_what_agrees_stays():
    same = torch.rand(3, 8, 5)
    torch.testing.assert_close(blend(same, same, 1), same)

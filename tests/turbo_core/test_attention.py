"""The text of `dense_blocks`."""

import pytest
from td_pack.turbo_core.attention import parse_blocks
from td_pack.turbo_core.errors import TurboError


@pytest.mark.parametrize(
    "text, blocks",
    [
        ("", set()),
        (" , ", set()),
        ("0", {0}),
        ("39", {39}),
        ("0,38-39", {0, 38, 39}),
        (" 3 - 5 , 4-4,3", {3, 4, 5}),
        ("0-39", set(range(40))),
    ],
)
def test_blocks_and_ranges(text, blocks):
    assert parse_blocks(text, 40) == blocks


@pytest.mark.parametrize("part", ["40", "38-40", "5-3", "-1", "a", "1.5", "1-", "0--1", "1-2-3", "0 1", "all"])
def test_anything_else_is_refused_by_its_part(part):
    with pytest.raises(TurboError) as error:
        parse_blocks(f"0, {part} ,2", 40)
    assert repr(part) in str(error.value)
    assert "0,38-39" in str(error.value) or "0 to 39" in str(error.value)

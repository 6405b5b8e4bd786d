"""Upstream's int8 files: seen from the tensors, and what is damaged in one is named."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.outlines import refusal
from td_pack.turbo_core.checkpoint.identify import identify


@pytest.fixture
def int8():
    return checkpoints.upstream_state_dict(1, dim=256, ffn_dim=384, layers=1, int8=True)


def test_int8_is_seen_from_the_tensors(int8):
    spec, tensors = identify("file", int8)
    assert spec.int8 and spec.turbo and not spec.sla
    assert spec.describe() == "TurboWan T2V 1 layers of width 256 int8"
    assert tensors["blocks.0.ffn.2.weight"] is int8["blocks.0.ffn.2.int8_weight"]
    assert tensors["blocks.0.ffn.2.weight_scale"].shape == (2, 3)


DAMAGED_INT8 = {
    "no scale": (
        {"blocks.0.ffn.2.scale": None},
        "1 missing: blocks.0.ffn.2.weight_scale. It looks like int8 weights without",
    ),
    "scale of another shape": ({"blocks.0.ffn.2.scale": torch.ones(2, 2)}, "weight_scale [2, 2] instead of [2, 3]"),
    "scale per row": ({"blocks.0.ffn.2.scale": torch.ones(256)}, "weight_scale [256] instead of [2, 3]"),
    "NaN scale": (
        {"blocks.0.ffn.2.scale": torch.full((2, 3), torch.nan)},
        "1 with scales that are not positive numbers: ",
    ),
    "zero scale": ({"blocks.0.ffn.2.scale": torch.zeros(2, 3)}, "1 with scales that are not positive numbers: "),
    "scale in half": (
        {"blocks.0.ffn.2.scale": torch.ones(2, 3).half()},
        "of a wrong type: blocks.0.ffn.2.weight_scale float16",
    ),
    "codes in uint8": (
        {"blocks.0.ffn.2.int8_weight": torch.zeros(256, 384, dtype=torch.uint8)},
        "of a wrong type: blocks.0.ffn.2.weight uint8",
    ),
    "another size": (
        {"blocks.0.ffn.2.int8_weight": torch.zeros(256, 256, dtype=torch.int8)},
        "blocks.0.ffn.2.weight [256, 256] instead of [256, 384]",
    ),
    "an int8 bias": ({"blocks.0.ffn.2.bias": torch.zeros(256, dtype=torch.int8)}, "blocks.0.ffn.2.bias int8"),
    "an int8 embedding": (
        {
            "text_embedding.2.weight": torch.zeros(256, 256, dtype=torch.int8),
            "text_embedding.2.weight_scale": torch.ones(2, 2),
        },
        "of a wrong type: text_embedding.2.weight int8",
    ),
    "cut": ({"head.modulation": None}, "head.modulation is missing"),
}


@pytest.mark.parametrize("changes, message", DAMAGED_INT8.values(), ids=DAMAGED_INT8)
def test_a_damaged_int8_file_says_what_is_wrong(int8, changes, message):
    damaged = {key: value for key, value in (int8 | changes).items() if value is not None}
    assert message in refusal(damaged)

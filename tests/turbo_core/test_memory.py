"""What the memory formulas say, against loaded tiny models and README; of a step see host/test_step_memory.py."""

from functools import partial
from pathlib import Path

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.checkpoint.layout import TEXT_WIDTH, WanSpec
from td_pack.turbo_core.host.construct import network_shapes
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.status import published_lines
from td_pack.turbo_core.memory import StepForm, step_bytes, tokens, weight_bytes
from td_pack.turbo_core.record import amount

README = Path(__file__).resolve().parents[2] / "README.md"
KINDS = {
    "bf16": checkpoints.upstream_state_dict,
    "sla": partial(checkpoints.upstream_state_dict, sla=True, in_channels=36),
    "int8": partial(checkpoints.upstream_state_dict, int8=True, ffn_dim=600),
    "int8 sla": partial(checkpoints.upstream_state_dict, int8=True, sla=True, layers=3, ffn_dim=1024),
    "VACE": checkpoints.vace,
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_a_loaded_model_take_what_is_said(kind, tmp_path):
    model = load_model(str(checkpoints.write_pth(tmp_path / "m.pth", KINDS[kind](1))))
    # No weights: the schedule's 1000 sigmas, and the format's name that each quantized layer exports.
    other = [v for k, v in model.model.state_dict().items() if k.endswith(("sigmas", "comfy_quant"))]
    shapes = network_shapes(model.model)
    expected = weight_bytes(shapes, model.model.get_dtype_inference(), model.model.spec.int8)
    assert expected == model.model_size() - sum(tensor.nbytes for tensor in other)


def test_readme_and_status_say_the_same():
    table = [row.split(" | ") for row in README.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    for line in published_lines():
        name, numbers = line.split(", in int8 and bf16: weights ")
        (row,) = (row for row in table if row[0].startswith(f"| [{name.removesuffix(', each expert')}]"))
        weights, steps = numbers.replace(" and ", ", ").split("; a step of 81 frames ")
        small, large = steps.removesuffix(" at 720p").split(" at 480p, ")
        assert [cell.removesuffix(" an expert") for cell in row[2:4]] == [weights, small]
        assert row[4] in (large, "-"), "the model of 480p has no number for 720p"
    (row,) = (row for row in table if row[0] == "| LingBot-World")
    spec = WanSpec(False, False, 5120, 13824, 40, 36, TEXT_WIDTH, camera="cam")
    assert row[3] == amount(step_bytes(spec, tokens(832, 480, 81), torch.bfloat16, StepForm(camera=True)))


@pytest.mark.parametrize(
    "size,count", [((832, 480, 81), 32760), ((1280, 720, 81), 75600), ((640, 640, 1), 1600), ((16, 16, 5), 2)]
)
def test_tokens_of_a_video(size, count):
    assert tokens(*size) == count

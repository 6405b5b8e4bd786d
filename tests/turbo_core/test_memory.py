"""What the memory formulas say, against loaded tiny models and a traced step."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.allocations import PeakBytes
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.memory import step_bytes, tokens, weight_bytes

KINDS = {
    "bf16": dict(),
    "sla": dict(sla=True, in_channels=36),
    "int8": dict(int8=True, ffn_dim=600),
    "int8 sla": dict(int8=True, sla=True, layers=3, ffn_dim=1024),
}


@pytest.fixture
def load(tmp_path):
    return lambda **kind: load_model(
        str(checkpoints.write_pth(tmp_path / "m.pth", checkpoints.upstream_state_dict(1, **kind)))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_of_a_loaded_model_take_what_is_said(load, kind):
    model = load(**KINDS[kind])
    # No weights: the schedule's 1000 sigmas, and the format's name that each quantized layer exports.
    other = [v for k, v in model.model.state_dict().items() if k.endswith(("sigmas", "comfy_quant"))]
    expected = weight_bytes(model.model.spec, model.model.get_dtype_inference())
    assert expected == model.model_size() - sum(tensor.nbytes for tensor in other)


@pytest.mark.parametrize("ffn_dim", [512, 1024])
def test_a_step_takes_no_more_than_estimated_and_not_half_as_much(load, ffn_dim):
    """Between two lengths, so that what does not grow with the video cancels out. An estimate that errs shall err
    upwards."""
    model = load(ffn_dim=ffn_dim, sla=True, int8=True)
    counts, peaks = (512, 1024), []
    for count in counts:
        with torch.no_grad(), PeakBytes() as memory:
            x = torch.zeros(1, 16, 1, 32, count // 8)
            model.model.diffusion_model(x, torch.tensor([900.0]), torch.zeros(1, 8, 4096), transformer_options={})
        peaks.append(memory.peak)
    grown = peaks[1] - peaks[0]
    estimate = step_bytes(model.model.spec, counts[1] - counts[0], torch.float32)
    assert 0.5 * estimate <= grown <= 1.1 * estimate, (grown, estimate)


@pytest.mark.parametrize(
    "size,count", [((832, 480, 81), 32760), ((1280, 720, 81), 75600), ((640, 640, 1), 1600), ((16, 16, 5), 2)]
)
def test_tokens_of_a_video(size, count):
    assert tokens(*size) == count

"""A model on two ranks, of which this process is one: what Ray is not needed for is in test_rank.py, a live server in
tests/nodes/test_parallel.py."""

import logging

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import compiled_by, relative_error
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.parallel import with_parallel
from td_pack.turbo_core.host.run import run

ray = pytest.importorskip("ray", reason="TurboDiffusionParallel needs Ray")


@pytest.fixture
def parallel(t2v):
    clone, _ = with_parallel(t2v, 2, "auto", "")
    yield clone
    ray.shutdown()


def sample(model):
    text = [[checkpoints.draw(1, "text", (1, 8, 4096)), {}]]
    return run(model, text, {"samples": torch.zeros(1, 16, 3, 20, 20)}, 3, 2, 0, 0.9, "ode", "cpu")["samples"]


@pytest.mark.usefixtures("no_graphs")
def test_compiling_has_no_effect_and_the_log_says_why(t2v, parallel, caplog):
    expected = sample(t2v)
    with caplog.at_level(logging.WARNING, "turbodiffusion"):
        assert relative_error(sample(compiled_by("eager", parallel)), expected) <= 1e-6
    (said,) = [record.getMessage() for record in caplog.records if "Torch Compile" in record.getMessage()]
    assert "several GPUs" in said


def test_one_device_leaves_the_model_as_it_is(t2v):
    assert with_parallel(t2v, 1, "auto", "") == (t2v, "One device: the model runs as without this node.")
    assert with_parallel(t2v, 0, "auto", "")[0] is t2v  # a CPU is one device


def test_a_network_with_more_than_blocks_is_refused(tmp_path):
    model = load_model(str(checkpoints.write_pth(tmp_path / "vace.pth", checkpoints.vace(3))))
    with pytest.raises(TurboError, match="runs text to video, image to video and LingBot-World; this is .*VACE"):
        with_parallel(model, 2, "auto", "")

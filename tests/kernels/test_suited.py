"""Which int8 weights are recommended for a GPU, and the predicted times that they and sage attention are chosen by."""

import pytest
import torch
from td_pack.kernels.attention import pv_format
from td_pack.kernels.int8 import suited
from td_pack.tests.bench.predict import TOPK, chosen
from td_pack.tests.bench.predict.gpus import GPUS
from td_pack.tests.bench.predict.step import FORMS, MODELS, sparse_branch, step
from td_pack.turbo_core.convert.codec import WEIGHTS


@pytest.mark.parametrize("gpu", GPUS)
def test_the_predictions_are_those_of_the_compiled_loops(gpu):
    target, model = GPUS[gpu].target, MODELS["T2V 14B 720p"]
    capability = int(target[3:-1]), int(target[-1])
    seconds = {}
    for form in FORMS:
        times = step(GPUS[gpu], model, TOPK, chosen(target), form)
        seconds[form] = sum(time.seconds for time in times.values())
    # Rounding, and an H200 whose memory is faster than the H100's that the tables are of.
    predicted = pytest.approx(suited.PREDICTED[capability], abs=0.015)
    assert seconds[suited.CHANNELS] / seconds[suited.TILES] == predicted
    in_16_bits = sparse_branch(GPUS[gpu], model, TOPK, "").seconds
    for pv, share in pv_format.PREDICTED[capability].items():
        assert sparse_branch(GPUS[gpu], model, TOPK, pv).seconds / in_16_bits == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("capability, weights", [((8, 0), "int8_rowwise"), ((9, 0), "int8_rowwise"),
                                                 ((8, 6), "int8_block"), ((8, 9), "int8_block"),
                                                 ((12, 0), "int8_block"), ((10, 0), "int8_block")])  # fmt: skip
def test_what_is_recommended(capability, weights):
    name, reason = suited.suited_to(capability)
    assert name == weights and name in WEIGHTS
    assert ("predicted to take" in reason) == (capability != (10, 0))


def test_a_cpu_takes_what_is_more_exact():
    assert suited.suited_weights(torch.device("cpu")).weights == "int8_block"

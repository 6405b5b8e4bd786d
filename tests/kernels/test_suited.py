"""Which int8 weights are recommended for a GPU."""

import pytest
import torch
from td_pack.kernels.int8 import suited
from td_pack.tests.bench.predict import TOPK, chosen
from td_pack.tests.bench.predict.gpus import GPUS
from td_pack.tests.bench.predict.step import FORMS, MODELS, step
from td_pack.turbo_core.convert.codec import WEIGHTS


@pytest.mark.parametrize("gpu", GPUS)
def test_the_predictions_are_those_of_the_compiled_loops(gpu):
    target = GPUS[gpu].target
    seconds = {}
    for form in FORMS:
        times = step(GPUS[gpu], MODELS["T2V 14B 720p"], TOPK, chosen(target), form)
        seconds[form] = sum(time.seconds for time in times.values())
    predicted = suited.PREDICTED[int(target[3:-1]), int(target[-1])]
    # Rounding, and an H200 whose memory is faster than the H100's that the table is of.
    assert seconds[suited.CHANNELS] / seconds[suited.TILES] == pytest.approx(predicted, abs=0.015)


@pytest.mark.parametrize("capability, weights", [((8, 0), "int8_rowwise"), ((9, 0), "int8_rowwise"),
                                                 ((8, 6), "int8_block"), ((8, 9), "int8_block"),
                                                 ((12, 0), "int8_block"), ((10, 0), "int8_block")])  # fmt: skip
def test_what_is_recommended(capability, weights):
    name, reason = suited.suited_to(capability)
    assert name == weights and name in WEIGHTS
    assert ("predicted to take" in reason) == (capability != (10, 0))


def test_a_cpu_takes_what_is_more_exact():
    assert suited.suited_weights(torch.device("cpu")).weights == "int8_block"

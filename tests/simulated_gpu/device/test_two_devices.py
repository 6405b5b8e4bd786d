"""A job on the second of two devices, chosen by ComfyUI's Select Model Device, while the process' current device is the
first: it runs there, with the same bits."""

import pytest
import torch
from td_pack.tests.support.jobs import node, saved

from .run import require_device
from .servers import LATENT_JOBS, device_server
from .settings import Devices

pytestmark = [pytest.mark.server, pytest.mark.thorough]


@pytest.fixture(scope="module")
def two(tmp_path_factory, control):
    """A server with two devices."""
    require_device()
    with device_server(tmp_path_factory.mktemp("two"), Devices(count=2, control=control.path)) as running:
        yield running


def moved(job: dict, inputs: dict[str, str]) -> dict:
    """The job with the models of its sampler or guider (by input: a device) on devices of their own."""
    (name,) = (name for name, given in job.items() if "high" in given["inputs"])
    given = job[name]["inputs"]
    chosen = {
        f"on {which}": node("SelectModelDevice", model=given[which], device=device) for which, device in inputs.items()
    }
    links = {which: [f"on {which}", 0] for which in inputs}
    return job | chosen | {name: job[name] | {"inputs": given | links}}


@pytest.mark.parametrize(
    "name, inputs",
    [
        ("int8-lora", {"high": "gpu:1"}),
        ("i2v-two-experts", {"low": "gpu:1"}),
        ("lingbot-nf4-camera", {"high": "gpu:1", "low": "gpu:1"}),
    ],
)
def test_a_model_runs_on_the_device_that_was_chosen_for_it(two, control, name, inputs):
    two.client.run(LATENT_JOBS[name](name))
    expected, before = saved(two, name), control.on_device
    two.client.run(moved(LATENT_JOBS[name](f"{name}-moved"), inputs))
    made = [after - first for after, first in zip(control.on_device, before, strict=True)]
    print(f"{name}: tensors made on each device: {made[:2]}")
    assert made[1] > 100 and torch.equal(saved(two, f"{name}-moved"), expected)

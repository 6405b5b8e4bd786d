"""Memory on the simulated device: whole jobs give the same bits whatever fits onto it, and an allocation that fails ends
in a clear error or a finished run, after which the next prompt works."""

import random

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.jobs import node, saved, t2v_job

from .run import require_device
from .servers import KEPT_FREE, LATENT_JOBS, device_server
from .settings import Devices

pytestmark = [pytest.mark.server, pytest.mark.thorough]
MEGABYTE = 1 << 20
# Bytes for weights. An expert has 6.3 MB, and ComfyUI keeps another 3 MB to copy the weights to that do not fit.
BUDGETS = {"one expert fits": 8 * MEGABYTE, "a third of one fits": 5 * MEGABYTE, "nothing fits": 0}
JOBS = ("i2v-two-experts", "lingbot-nf4-camera", "int8-lora")


@pytest.fixture(scope="module")
def device(tmp_path_factory, control):
    """A server with a device that holds everything."""
    require_device()
    with device_server(tmp_path_factory.mktemp("large"), Devices(control=control.path)) as running:
        yield running


@pytest.fixture(scope="module", params=BUDGETS)
def small(request, tmp_path_factory):
    """A server with a device that does not."""
    require_device()
    devices = Devices(memory=KEPT_FREE + BUDGETS[request.param])
    with device_server(tmp_path_factory.mktemp("small"), devices) as running:
        yield running


@pytest.fixture(scope="module")
def complete(device) -> dict[str, torch.Tensor]:
    """What each job gives where everything fits."""
    for name in JOBS:
        device.client.run(LATENT_JOBS[name](name))
    return {name: saved(device, name) for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_the_memory_does_not_change_the_result(complete, small, name):
    small.client.run(LATENT_JOBS[name](name))
    assert complete[name].isfinite().all() and torch.equal(saved(small, name), complete[name])


def oom_job(prefix: str) -> dict:
    return t2v_job(prefix) | {
        "vae": node("VAELoader", vae_name=checkpoints.VAE),
        "decode": node("TurboDiffusionVAEDecode", samples=["sample", 0], vae=["vae", 0]),
        "images": node("SaveImage", images=["decode", 0], filename_prefix=prefix),
    }


def forget(server) -> None:
    """Unloads all models and clears the cache of results, so that the next prompt does everything again."""
    server.client.post("/free", {"unload_models": True, "free_memory": True})
    # ComfyUI does so after a prompt if one is waiting by then, so that another one makes sure that it is done.
    server.client.run({"one": node("PrimitiveInt", value=1), "shown": node("PreviewAny", source=["one", 0])})


LOADED_FIRST = 20  # of the sampler's allocations, those are weights

PHASES = ("load", "first step", "second step", "decode")


@pytest.fixture(scope="module")
def phases(device, control) -> dict[str, tuple[int, int]]:
    """The allocations of each phase, counted from the start of a prompt."""
    device.client.run(oom_job("self-tests"))  # which are made once
    marks = {}

    def on_event(kind: str, data: dict) -> None:
        if kind == "executing" and data.get("node") in ("sample", "decode", "images"):
            marks[data["node"]] = control.allocations - start
        elif kind == "progress" and data.get("node") == "sample":
            marks.setdefault(int(data["value"]), control.allocations - start)

    forget(device)
    start = control.allocations
    device.client.run(oom_job("undisturbed"), on_event=on_event)
    loaded = marks["sample"] + LOADED_FIRST
    places = (marks["sample"], loaded), (loaded, marks[1]), (marks[1], marks[2]), (marks["decode"], marks["images"])
    return dict(zip(PHASES, places, strict=True))


@pytest.mark.parametrize("phase", PHASES)
def test_a_failed_allocation_ends_clearly_and_the_next_prompt_works(device, control, phases, phase):
    low, high = phases[phase]
    offset = random.Random(phase).randrange(low, high)
    forget(device)
    before = control.failed
    control.fail(control.allocations + 1 + offset)
    result = device.client.run(oom_job("failing"), check=False)
    assert control.failed == before + 1
    print(f"{phase}: allocation {offset} of {low} to {high}: {result.error and result.error['exception_message'][:80]}")
    if result.error is not None:
        assert "memory" in result.error["exception_message"]
    device.client.run(oom_job("after"))
    assert torch.equal(saved(device, "after"), saved(device, "undisturbed"))

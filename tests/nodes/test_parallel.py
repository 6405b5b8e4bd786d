"""One video on two ranks: a live server on the CPU, Ray, gloo."""

import time
from pathlib import Path

import psutil
import pytest
from td_pack.tests.support import checkpoints
from td_pack.tests.support.jobs import attention, empty, i2v_job, node, run_held, saved, started, t2v_job, text
from td_pack.tests.support.models import relative_error
from td_pack.tests.support.server import ComfyServer

pytestmark = pytest.mark.server
pytest.importorskip("ray", reason="TurboDiffusionParallel needs Ray")

SIZE = {"width": 128, "height": 128, "length": 13}  # 4 x 8 x 8 tokens: a tile for each of two ranks
FREE = {"unload_models": True, "free_memory": False}
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("ranks")
    checkpoints.write_models(base / "models")
    with ComfyServer(base, test_nodes=True) as running:
        yield running


@pytest.fixture(scope="module")
def single(server):
    """The latent of one process."""
    server.client.run(job("single", gpus=1))
    return saved(server, "single")


def rays(server) -> list[psutil.Process]:
    """The processes that Ray started for a server."""
    return psutil.Process(server.pid).children(recursive=True)


def ranks(server) -> list[psutil.Process]:
    """The processes of other ranks."""
    return [each for each in rays(server) if each.cmdline()[0].startswith("ray::Actor")]


def parallel(model: str, gpus: int = 2, **more) -> dict:
    return node("TurboDiffusionParallel", model=[model, 0], gpus=gpus, backend="auto", **more)


def job(prefix: str, gpus: int = 2, call: int = 0, what: str = "oom", **changes) -> dict:
    """Text to video with sparse attention; `call`: of a block of rank 0, which fails or is held."""
    prompt = t2v_job(prefix, latent=empty(**SIZE), sla=attention("sla"), parallel=parallel("sla", gpus)) | changes
    prompt["fault"] = node("TestFault", any=["text", 0], module="TurboBlock" if call else "", call=call, what=what)
    prompt["sample"]["inputs"] |= {"high": ["parallel", 0], "positive": ["fault", 0]}
    return prompt


def assert_works(server, single) -> None:
    server.client.run(job("after"))
    assert relative_error(saved(server, "after"), single) <= 1e-6


def test_two_ranks_make_the_video_of_one(server, single):
    assert_works(server, single)
    assert len(ranks(server)) == 1
    status = server.client.run(
        {"status": node("TurboDiffusionStatus")} | {"show": node("PreviewAny", source=["status", 0])}
    )
    assert "TurboDiffusion Parallel: 2 processes on the CPU, gloo" in server.log()
    assert status.error is None


def test_two_experts_share_the_ranks(server):
    """Four steps, two of each expert, on one process."""
    for gpus in (1, 2):
        prompt = i2v_job(f"experts {gpus}", 4, checkpoints.I2V_LOW)
        prompt["latent"] = started(**SIZE)
        prompt |= {"high on two": parallel("model", gpus), "low on two": parallel("low", gpus)}
        prompt["sample"]["inputs"] |= {"high": ["high on two", 0], "low": ["low on two", 0]}
        server.client.run(prompt)
    assert relative_error(saved(server, "experts 2"), saved(server, "experts 1")) <= 1e-6
    assert len(ranks(server)) == 1


def test_a_batch_with_guidance_is_the_same(server):
    """Two videos, each with and without the prompt: four items in a call of the network."""
    for gpus in (1, 2):
        prompt = job(f"guided {gpus}", gpus, latent=empty(**SIZE, batch_size=2), negative=text("blurred"))
        prompt["sample"]["inputs"] |= {"negative": ["negative", 0], "cfg_high": 2.0}
        server.client.run(prompt)
    assert saved(server, "guided 2").shape[0] == 2
    assert relative_error(saved(server, "guided 2"), saved(server, "guided 1")) <= 1e-6


@pytest.mark.parametrize("call", [1, 3])
def test_out_of_memory_on_rank_0(server, single, call):
    result = server.client.run(job("oom", call=call), check=False)
    assert result.error["exception_message"].startswith("Allocation on device (made to fail by a test)")
    assert_works(server, single)


def test_interrupt_within_a_step(server, single):
    """Rank 0 is held in a block, the other rank waits in a collective for it."""
    result = run_held(server, job("interrupted", call=2, what="hold"), server.client.interrupt)
    assert result.interrupted and result.error is None
    assert_works(server, single)


def test_a_rank_is_killed_within_a_step(server, single):
    def act():
        for each in ranks(server):
            each.kill()
        server.client.post("/free", FREE)

    result = run_held(server, job("killed", call=2, what="hold"), act)
    message = result.error["exception_message"]
    assert "GPU 1 of this run failed: its process has ended" in message and "queue the prompt again" in message
    assert_works(server, single)


def test_models_are_freed(server, single):
    server.client.post("/free", FREE | {"free_memory": True})
    assert_works(server, single)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"gpus": 3}, "The 2 attention heads of this model cannot be divided among 3 GPUs: set gpus to one of 2."),
        ({"address": "10.1.2.3:6379"}, "Ray runs in this ComfyUI for another purpose"),
        ({"backend": "nccl"}, "NCCL connects GPUs, and ComfyUI runs on the CPU: set backend to auto or gloo."),
    ],
)
def test_what_cannot_be_is_a_sentence(server, given, expected):
    refused = parallel("sla")
    refused["inputs"] |= given
    result = server.client.run(job("refused", parallel=refused), check=False)
    assert expected in result.error["exception_message"]


def test_a_video_of_fewer_tiles_than_ranks_is_a_sentence(server, single):
    result = server.client.run(job("small", latent=empty()), check=False)
    assert "48 tokens, 1 tiles of 128, too few for 2 GPUs" in result.error["exception_message"]
    assert_works(server, single)


def test_nothing_is_left_when_the_server_ends(server):
    """But for Ray's two agents, which hold no model and end by themselves after a minute."""
    left = [each for each in rays(server) if not each.cmdline()[0].startswith(AGENTS)]
    shared = set(Path("/dev/shm").iterdir())
    assert ranks(server)
    server.stop()
    end = time.monotonic() + 90
    while any(each.is_running() for each in left) and time.monotonic() < end:
        time.sleep(0.5)
    assert not [each for each in left if each.is_running()]
    assert set(Path("/dev/shm").iterdir()) <= shared

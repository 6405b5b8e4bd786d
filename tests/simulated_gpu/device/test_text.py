"""A new prompt is encoded on the GPU, however little memory that has, and one that was used before touches no device."""

import pytest
import safetensors.torch
import torch
from td_pack.tests.support import text_encoders
from td_pack.tests.support.jobs import encoded, node

from .run import require_device
from .servers import KEPT_FREE, device_server
from .settings import Control, Devices

pytestmark = pytest.mark.server
JOB = {"text": encoded(), "used": node("PreviewAny", source=["text", 0])}
# Bytes for weights, of which the encoder has 12 MB, and what ComfyUI is started with.
SMALL = {"a third fits": (4 << 20, ()), "--lowvram": (4 << 20, ("--lowvram",)), "--novram": (0, ("--novram",))}


def run_on(base, memory: int, *arguments: str):
    """What a server on such a device says in its log, the embedding that it kept, and the tensors that it allocated on
    the device for the prompt, and for the same prompt again."""
    control = Control(base / "control")
    devices = Devices(memory=KEPT_FREE + memory, control=control.path)
    with device_server(base, devices, *arguments) as server:
        text_encoders.write_small(server.models_dir)
        allocated = []
        for _ in range(2):
            before = control.allocations
            server.client.run(JOB)
            allocated.append(control.allocations - before)
            server.client.post("/free", {"unload_models": True, "free_memory": True})  # ComfyUI's own cache too
        (kept,) = base.rglob("text_cache/*.safetensors")
        return server.log(), safetensors.torch.load_file(kept)["cond"], allocated


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> torch.Tensor:
    """The embedding on a device that holds the encoder."""
    require_device()
    return run_on(tmp_path_factory.mktemp("large"), 1 << 30)[1]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "--lowvram" else (pytest.mark.thorough,)) for case in SMALL]
)
def test_it_is_encoded_on_a_device_that_does_not_hold_the_encoder(tmp_path, expected, case):
    memory, arguments = SMALL[case]
    log, embedding, (new, known) = run_on(tmp_path, memory, *arguments)
    assert f"Encoded the prompt with {text_encoders.SMALL} on cuda:0" in log
    assert "load device: cuda:0, offload device: cpu" in log and "loaded partially" in log
    assert torch.equal(embedding, expected) and embedding.isfinite().all()
    assert new > 0 and known == 0, "a prompt that was kept touches no device"

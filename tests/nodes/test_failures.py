"""What can go wrong in each phase of a run: a clear error or a finished run, and the next prompt gives the same as
before."""

import pytest
import torch
from td_pack.tests.support import text_encoders
from td_pack.tests.support.jobs import encoded, i2v_job, loader, node, run_held, saved

pytestmark = pytest.mark.server

DECODERS = {
    "decode": "VAEDecode",
    "streamed decode": "TurboDiffusionVAEDecode",
    "video decode": "TurboDiffusionVAEDecodeVideo",
}
PHASES = ["text encode", "image encode", "load high", "sample high", "switch", "sample low", *DECODERS]
# Where the fault strikes: at a call of a module, four steps of two blocks being high, high, low, low, and a decoder's
# first chunk three upsamplings; or in loading an expert.
CALLS = {
    "text encode": ("T5Block", 1),
    "image encode": ("Encoder3d", 2),
    "sample high": ("TurboBlock", 2),
    "sample low": ("TurboBlock", 6),
} | dict.fromkeys(DECODERS, ("Upsample", 4))
LOADS = {"load high": "model", "switch": "low"}
TILED_INSTEAD = {"image encode", *DECODERS}  # ComfyUI's VAE goes on in tiles, and so do our nodes


def fault(passed, phase: str | None, what: str) -> dict:
    """A node that passes its input on, and arms the fault if the phase is one of CALLS."""
    module, call = CALLS.get(phase, ("", 0))
    return node("TestFault", any=passed, module=module, call=call, what=what)


def job(prefix: str, phase: str | None = None, what: str = "oom") -> dict:
    """Text, image, two experts, decode. All but the loaders runs each time, with the fault in that phase or without."""
    prompt = i2v_job(prefix, 4, text_encoders.SMALL_LOW) | {
        "model": loader(text_encoders.SMALL_HIGH),
        "text": encoded(),
        "fault": fault(["text", 0], phase, what),
        "decode": node(DECODERS.get(phase, "VAEDecode"), samples=["sample", 0], vae=["vae", 0]),
        "images": node("PreviewImage", images=["decode", 0]),
    }
    if phase == "video decode":
        prompt["decode"]["inputs"]["fps"] = 16.0
        video = {"video": ["decode", 0], "filename_prefix": prefix, "format": "auto", "codec": "auto"}
        prompt["images"] = node("SaveVideo", **video)
    prompt["latent"]["inputs"] |= {"positive": ["fault", 0], "width": 192}  # wide enough to be decoded in strips
    if phase == "text encode":
        prompt["words"] = fault(text_encoders.PROMPT, phase, what)
        prompt["text"] = encoded(words=["words", 0], cache=False)
        prompt["fault"] = fault(["text", 0], None, what)
    if phase in LOADS:
        expert = LOADS[phase]
        prompt["load"] = node("TestLoadFault", model=[expert, 0], what=what)
        prompt["sample"]["inputs"]["low" if expert == "low" else "high"] = ["load", 0]
    return prompt


@pytest.fixture(scope="module")
def undisturbed(text_server) -> torch.Tensor:
    """The latent of a run that nothing happens to; its prompt is in the cache from then on."""
    text_server.client.run(job("undisturbed"))
    return saved(text_server, "undisturbed")


def assert_works(server, expected: torch.Tensor) -> None:
    after = job("after") | {"resident": node("TestResident", any=["images", 0])}
    result = server.client.run(after)
    assert {"sample", "decode", "images"} <= set(result.executed_nodes)
    assert torch.equal(saved(server, "after"), expected)
    assert result.outputs["resident"]["text"][0].startswith("0 text encoders;")


@pytest.mark.parametrize("phase", PHASES)
def test_out_of_memory(text_server, undisturbed, phase):
    result = text_server.client.run(job("oom", phase), check=False)
    if phase in TILED_INSTEAD:
        assert result.error is None and "images" in result.executed_nodes
    else:
        assert result.error["exception_message"].startswith("Allocation on device (made to fail by a test)")
    assert_works(text_server, undisturbed)


@pytest.mark.parametrize("phase", PHASES)
def test_interrupt(text_server, undisturbed, phase):
    result = run_held(text_server, job("interrupted", phase, "hold"), text_server.client.interrupt)
    assert result.interrupted and result.error is None
    assert "images" not in result.executed_nodes
    assert_works(text_server, undisturbed)


@pytest.mark.parametrize("phase", PHASES)
def test_free_and_a_second_prompt_meanwhile(text_server, undisturbed, phase):
    def act() -> None:
        text_server.client.post("/free", {"unload_models": True, "free_memory": True})
        text_server.client.queue(job("second"))

    result = run_held(text_server, job("first", phase, "hold"), act)
    assert result.error is None and not result.interrupted
    assert_works(text_server, undisturbed)  # and, the queue being one, the second prompt is done
    for prefix in ("first", "second"):
        assert torch.equal(saved(text_server, prefix), undisturbed)

"""Generated prompts to a live server: each is refused or ends, with a sentence on its node, and the worker goes on.

`--long` sends a hundred times as many, drawn anew each time."""

import copy
import json
import math
import urllib.error
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st
from td_pack.tests.nodes.test_replacements import i2v
from td_pack.tests.support import checkpoints
from td_pack.tests.support.client import PromptRejected
from td_pack.tests.support.jobs import attention, camera_path, empty, node, sampled, t2v_job

pytestmark = pytest.mark.server

SMALL = dict(width=64, height=64)
T2V = t2v_job(
    "fuzz",
    attention=attention(),
    latent=empty(16, 16, 1),
    sample=sampled(steps=1, high=["attention", 0], cfg_high=1.0),
    vae=node("VAELoader", vae_name=checkpoints.VAE),
    video=node("TurboDiffusionVAEDecodeVideo", samples=["sample", 0], vae=["vae", 0], fps=16.0),
    save=node("SaveVideo", video=["video", 0], filename_prefix="fuzz", format="auto", codec="auto"),
)
OLD = i2v(num_steps=1, num_frames=1)
OTHERS = {
    "image": node("EmptyImage", **SMALL, batch_size=1, color=0),
    "fitted": node("TurboDiffusionPrepareImage", image=["image", 0], resolution="480p", aspect="1:1", fit="crop"),
    "path": camera_path(),
    "camera": node("TurboDiffusionCameraEmbed", camera=["path", 0], **SMALL, control="cam"),
    "compare": node("TurboDiffusionCompare", a=["image", 0], b=["image", 0], label_a="A", label_b="B"),
    "status": node("TurboDiffusionStatus", any=["camera", 1]),
    "convert": node(
        "TurboDiffusionConvert", model_name=checkpoints.T2V_SLA, output_name="fuzzed", weights="keep", overwrite=True
    ),
}
NEW = OLD | {"sample": {**OLD["sample"], "class_type": "TurboDiffusionLegacyI2V"}}

links = st.tuples(
    st.sampled_from(["missing", "sample", "image", "model", "text", "vae", 0]), st.sampled_from([0, 1, -1, 99, 0.0])
).map(list)
values = st.one_of(
    links,
    links.map(lambda link: {"__value__": link}),
    st.sampled_from([None, True, 0, 1, 2, -1, 7.5, 10**30, math.nan, -math.inf, "nan", "1e999", "", "..", "x" * 5000]),
    st.sampled_from([[], [1], {}, {"__value__": []}, {"__value__": 1}, {"__type__": "INT"}, "\x00", "\ud800", "../a"]),
)


@st.composite
def prompts(draw) -> dict:
    """A valid prompt with up to three inputs of this pack's nodes, or of those they replace, changed or removed."""
    prompt = copy.deepcopy(draw(st.sampled_from([T2V, OLD, NEW, OTHERS])))
    for _ in range(draw(st.integers(1, 3))):
        given_node = prompt[draw(st.sampled_from([name for name, n in prompt.items() if "Turbo" in n["class_type"]]))]
        inputs = given_node["inputs"]
        name = draw(st.sampled_from([*inputs, "unknown", "unique_id", "low", "negative"]))
        if draw(st.integers(0, 6)):
            inputs[name] = draw(values)
        else:
            inputs.pop(name, None)
    return prompt


def refusals(error: PromptRejected) -> list[dict]:
    return [error.error, *(each for found in error.node_errors.values() for each in found["errors"])]


def test_every_prompt_is_refused_or_ends_and_the_next_one_runs(server, examples):
    ends = set()

    @examples(40, times=100)
    @given(prompts())
    def survives(prompt):
        try:
            error = server.client.run(prompt, timeout=60, check=False).error  # TimedOut if the worker has ended
        except PromptRejected as refused:
            ends.add("refused")
            for each in refusals(refused):
                assert each["message"], each
                assert server.pack_name not in str(each.get("extra_info")), "our own check raised"
            return
        ends.add("failed" if error else "ran")
        if error and error["node_type"].startswith("TurboDiffusion"):
            assert error["exception_type"] in ("TurboDiffusion.Error", "TurboDiffusion.CheckpointError"), error

    survives()
    assert ends >= {"refused", "ran"}
    server.client.run(t2v_job("after"))


BODIES = ["[]", "5", "null", '"x"', '{"prompt": 5}', '{"prompt": {"1": 5}}', '{"prompt": {"1": {"class_type": ["a"]}}}']


@pytest.mark.parametrize("body", [*BODIES, '{"prompt": {"1": {"class_type": "TurboDiffusionStatus", "inputs": 5}}}'])
def test_a_body_that_is_no_prompt_is_answered_with_a_sentence(server, body):
    log_before = len(server.log())
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/prompt", body.encode()))
    assert json.load(caught.value)["error"]["message"] == "No prompt provided"
    assert "Traceback" not in server.log()[log_before:]

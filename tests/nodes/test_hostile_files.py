"""Files and inputs made to hurt, through a live server: each is one sentence on its node, and the server goes on."""

import json

import pytest
from td_pack.tests.support import checkpoints, hostile
from td_pack.tests.support.client import ExecutionFailed
from td_pack.tests.support.jobs import loader, node, t2v_job

pytestmark = pytest.mark.server
CONTRADICTING = {"config": json.dumps({"transformer": {"dim": 100000}})}
BYTEARRAY = b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (20 << 30).to_bytes(5, "little") + b"\x85R."
FILES = {
    "contradicting.safetensors": (
        lambda path: checkpoints.write_safetensors(path, checkpoints.upstream_state_dict(7, layers=1), CONTRADICTING),
        "metadata that contradicts its tensors .config: dim is 100000, and the tensors say 256",
    ),
    "bytearray.pth": (lambda path: hostile.write_archive(path, BYTEARRAY), "holds Python objects besides tensors"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_one_sentence_and_the_next_job_runs(name, server):
    write, said = FILES[name]
    write(server.models_dir / "diffusion_models" / name)
    with pytest.raises(ExecutionFailed, match=f"^{name} .*{said}"):
        server.client.run(t2v_job("hostile", model=loader(name)))
    server.client.run(t2v_job("after"))


def test_a_label_of_any_length_is_drawn(server):
    frames = node("EmptyImage", width=32, height=24, batch_size=2, color=0)
    compare = node("TurboDiffusionCompare", a=["a", 0], b=["a", 0], label_a="x" * 100_000, label_b="b")
    result = server.client.run({"a": frames, "compare": compare})
    assert "PSNR infinite" in result.outputs["compare"]["text"][0]

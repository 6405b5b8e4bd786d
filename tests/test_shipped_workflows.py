"""Every shipped TurboWan workflow runs through the queue on tiny files, to an mp4."""
import io
from pathlib import Path

import av
import pytest
from td_pack.tests.support import workflows
from td_pack.tests.support.demo import PICTURE, TINY_FILES
from td_pack.tests.support.host import comfyui_path

pytestmark = pytest.mark.server

NAMES = sorted(path.stem for path in workflows.API_WORKFLOWS.glob("TurboWan*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workflow_makes_a_video(server, name):
    server.client.upload_image(Path(comfyui_path()) / "input" / PICTURE)
    prompt = workflows.fit(workflows.load(name), models=TINY_FILES, width=64, height=48, length=9)
    result = server.client.run(prompt)
    assert result.previews_count >= 1
    with av.open(io.BytesIO(server.client.view(result.files[0]))) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 9 and frames[0].shape == (48, 64, 3)
    assert all(frame.std() > 5 for frame in frames)


def test_sampling_can_be_interrupted(server):
    prompt = workflows.fit(workflows.load(NAMES[0]), models=TINY_FILES, width=256, height=160, length=33)
    sampler = next(key for key, node in prompt.items() if node["class_type"] == "TurboDiffusionSample")
    prompt[sampler]["inputs"]["steps"] = 16

    def interrupt(kind, data):
        if kind == "progress" and data["node"] == sampler:
            server.client.interrupt()

    result = server.client.run(prompt, on_event=interrupt)
    assert result.interrupted and not result.outputs
    again = workflows.fit(prompt, models=TINY_FILES, width=64, height=48, length=9)
    assert server.client.run(again).files

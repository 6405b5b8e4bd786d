"""Where the page offers the nodes, and what they show of themselves when they did not run again."""

import pytest
from td_pack.tests.support import checkpoints
from td_pack.tests.support.jobs import camera_path, loader, node

pytestmark = pytest.mark.server

ESSENTIALS = {
    "TurboDiffusionLoader": "Video Generation",
    "TurboDiffusionTextEncode": "Video Generation",
    "TurboDiffusionSample": "Video Generation",
    "TurboDiffusionVAEDecodeVideo": "Video Generation",
    "TurboDiffusionPrepareImage": "Image Tools",
    "TurboDiffusionCompare": "Video Tools",
}


def test_the_nodes_of_a_first_video_are_among_the_essentials(server):
    info = server.client.object_info()
    ours = {name: each.get("essentials_category") for name, each in info.items() if name.startswith("TurboDiffusion")}
    assert {name: category for name, category in ours.items() if category} == ESSENTIALS


LORA = {
    "model": loader(checkpoints.TOY_T2V),
    "shown": node("TurboDiffusionLoRA", model=["model", 0], lora_name=checkpoints.TOY_LORA, strength=1.0),
}
CAMERA = {
    "path": camera_path(source="preset", length=5),
    "shown": node("TurboDiffusionCameraEmbed", camera=["path", 0], width=64, height=48, control="cam"),
}


@pytest.mark.parametrize("job,kind", [(LORA, "text"), (CAMERA, "images")])
def test_what_a_node_shows_is_shown_again_when_it_comes_from_the_cache(server, job, kind):
    checkpoints.write_toy_models(server.models_dir)
    job = job | {"status": node("TurboDiffusionStatus", any=["shown", 0])}
    first, again = server.client.run(job), server.client.run(job)
    assert "shown" in first.executed_nodes and "shown" in again.cached_nodes
    assert first.outputs["shown"][kind] == again.outputs["shown"][kind] != []

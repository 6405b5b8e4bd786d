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


def test_a_loras_report_is_shown_again_when_the_node_comes_from_the_cache(server):
    checkpoints.write_toy_models(server.models_dir)
    lora = node("TurboDiffusionLoRA", model=["model", 0], lora_name=checkpoints.TOY_LORA, strength=1.0)
    job = {"model": loader(checkpoints.TOY_T2V), "lora": lora, "status": node("TurboDiffusionStatus", any=["lora", 0])}
    first, again = server.client.run(job), server.client.run(job)
    assert "lora" in first.executed_nodes and "lora" in again.cached_nodes
    assert first.outputs["lora"]["text"] == again.outputs["lora"]["text"]
    assert first.outputs["lora"]["text"][0].startswith(f"{checkpoints.TOY_LORA}: ")


def test_a_cameras_picture_is_shown_again_when_the_node_comes_from_the_cache(server):
    path = camera_path(source="preset", length=5)
    embed = node("TurboDiffusionCameraEmbed", camera=["path", 0], width=64, height=48, control="cam")
    job = {"path": path, "embed": embed, "status": node("TurboDiffusionStatus", any=["embed", 0])}
    first, again = server.client.run(job), server.client.run(job)
    assert "embed" in again.cached_nodes
    assert first.outputs["embed"]["images"] == again.outputs["embed"]["images"]

"""Where the page offers the nodes, and what they show of themselves when they did not run again."""

import asyncio
import json
import re
import struct

import aiohttp
import pytest
import safetensors.torch
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.jobs import camera_path, loader, node, t2v_job

pytestmark = pytest.mark.server
TEXT_EVENT = 3  # ComfyUI's BinaryEventTypes.TEXT

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


def all_drawn(server, job: dict) -> dict[str, list[str]]:
    """The texts, in their order, that the page draws on the nodes of a job, from the server's binary messages: id
    length, id, text."""

    async def follow() -> dict[str, list[str]]:
        texts = {}
        address = server.client.url.replace("http", "ws", 1) + "/ws?clientId=page"
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            await asyncio.to_thread(server.client.queue, job, "page")
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    kind, length = struct.unpack_from(">II", message.data)
                    if kind == TEXT_EVENT:
                        name, text = message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()
                        texts.setdefault(name, []).append(text)
                elif json.loads(message.data)["type"] == "execution_success":
                    break
        return texts

    return asyncio.run(follow())


def drawn(server, job: dict) -> dict[str, str]:
    """The last of these texts on each node."""
    return {name: texts[-1] for name, texts in all_drawn(server, job).items()}


def test_a_loras_report_is_drawn_on_the_node_and_stays_when_it_comes_from_the_cache(server):
    checkpoints.write_toy_models(server.models_dir)
    folder = server.models_dir / "loras"
    tensors = safetensors.torch.load_file(folder / checkpoints.TOY_LORA)
    tensors |= {"diffusion_model.blocks.77.ffn.0.alpha": torch.ones(()), "notes": torch.ones(1)}
    checkpoints.write_safetensors(folder / "partly.safetensors", tensors)
    lora = node("TurboDiffusionLoRA", model=["model", 0], lora_name="partly.safetensors", strength=1.0)
    job = {"model": loader(checkpoints.TOY_T2V), "lora": lora, "status": node("TurboDiffusionStatus", any=["lora", 0])}
    text = (
        "partly.safetensors: 18 of 19 layers; 2 of 38 tensors not used: 1 for no layer of this model "
        "(first: diffusion_model.blocks.77.ffn.0.alpha), 1 in an unknown key style (first: notes)"
    )
    assert drawn(server, job)["lora"] == text
    assert text in server.log()
    again = server.client.run(job)
    assert "lora" in again.cached_nodes and again.outputs["lora"]["text"] == [text]


def test_what_a_node_has_to_say_is_drawn_on_it(server):
    checkpoints.write_models(server.models_dir)
    picture = node("EmptyImage", width=64, height=64, batch_size=2, color=255)
    job = t2v_job("drawn") | {
        "path": camera_path(source="preset", length=5),
        "picture": picture,
        "compare": node("TurboDiffusionCompare", a=["picture", 0], b=["picture", 0], label_a="a", label_b="b"),
        "used": node("PreviewAny", source=["path", 1]),
        "compared": node("PreviewAny", source=["compare", 2]),
        "status": node("TurboDiffusionStatus", any=["compare", 2]),
    }
    texts = drawn(server, job)
    assert re.fullmatch(r"2 steps in [\d.]+ s: load [\d.]+ s, sample [\d.]+ s \([\d.]+ \+ [\d.]+\)", texts["sample"])
    assert texts["path"] == "5 frames"
    assert texts["compare"] == "PSNR infinite: the frames are equal\nSSIM 1.0000 on average, lowest 1.0000 at frame 0"
    assert texts["status"] == server.client.run(job).outputs["status"]["text"][0].partition("\n")[0]


def test_a_cameras_picture_is_shown_again_when_the_node_comes_from_the_cache(server):
    path = camera_path(source="preset", length=5)
    job = {"path": path, "status": node("TurboDiffusionStatus", any=["path", 0])}
    first, again = server.client.run(job), server.client.run(job)
    assert "path" in again.cached_nodes
    assert first.outputs["path"]["images"] == again.outputs["path"]["images"]


def test_a_node_that_waits_for_kernels_says_so(server):
    checkpoints.write_models(server.models_dir)
    busy = node("TestBusyCompiler", model=["model", 0], seconds=1.2)
    job = {"model": loader(checkpoints.T2V_SLA), "busy": busy, "used": node("PreviewAny", source=["busy", 0])}
    first, *_, last = all_drawn(server, job)["busy"]
    assert first == "Compiling kernels for this GPU: 0 of 0. Only the first run has to wait for them."
    assert last == "Waited 1 s for kernels to be compiled."

"""The live server: the pack loads under any folder name, and the client reports what prompts do."""

import io

import av
import pytest
import torch
from PIL import Image
from td_pack.tests.support import checkpoints
from td_pack.tests.support.client import ExecutionFailed, PromptRejected
from td_pack.tests.support.server import ComfyServer, ServerFailed

pytestmark = pytest.mark.server


def decode_prompt(name: str, length: int = 9) -> dict:
    """An empty latent through the tiny VAE to an mp4."""
    return {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": checkpoints.VAE}},
        "2": {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 64, "height": 64, "length": length, "batch_size": 1},
        },
        "3": {"class_type": "VAEDecode", "inputs": {"samples": ["2", 0], "vae": ["1", 0]}},
        "4": {"class_type": "CreateVideo", "inputs": {"images": ["3", 0], "fps": 16.0}},
        "5": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["4", 0], "filename_prefix": name, "format": "mp4", "codec": "h264"},
        },
    }


def test_both_packs_are_loaded(server):
    assert "TestTextEmbedding" in server.client.object_info()
    assert server.pack_name in server.log()


def test_a_video_comes_back(server):
    # A length of its own: the server is shared, and another test's equal nodes would already be cached.
    result = server.client.run(decode_prompt("decode", length=13))
    assert set(result.executed_nodes) == set("12345")
    with av.open(io.BytesIO(server.client.view(result.files[0]))) as video:
        assert len(list(video.decode(video=0))) == 13
    again = server.client.run(decode_prompt("decode", length=13))
    assert set(again.cached_nodes) == set("12345") and not again.executed_nodes
    assert again.files == result.files


def test_a_wrong_input_is_rejected_with_its_reason(server):
    prompt = decode_prompt("rejected")
    prompt["1"]["inputs"]["vae_name"] = "absent.safetensors"
    with pytest.raises(PromptRejected) as caught:
        server.client.queue(prompt)
    assert caught.value.error["type"] == "prompt_outputs_failed_validation"
    assert caught.value.node_errors["1"]["errors"][0]["type"] == "value_not_in_list"


def test_a_node_error_keeps_its_message(server):
    broken = server.models_dir / "vae" / "broken.safetensors"
    checkpoints.write_safetensors(broken, {"x": torch.ones(1)})
    prompt = decode_prompt("failed")
    prompt["1"]["inputs"]["vae_name"] = broken.name
    with pytest.raises(ExecutionFailed, match="VAE is invalid") as caught:
        server.client.run(prompt)
    assert caught.value.result.error["node_id"] == "1"
    assert server.client.run(prompt, check=False).error["node_type"] == "VAELoader"


def test_an_uploaded_picture_can_be_loaded(server, tmp_path):
    Image.new("RGB", (32, 16), "red").save(tmp_path / "red.png")
    name = server.client.upload_image(tmp_path / "red.png")
    result = server.client.run(
        {
            "1": {"class_type": "LoadImage", "inputs": {"image": name}},
            "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "red"}},
        }
    )
    saved = Image.open(io.BytesIO(server.client.view(result.files[0])))
    assert saved.size == (32, 16) and saved.getpixel((0, 0)) == (255, 0, 0)


def test_a_pack_that_cannot_be_imported_is_noticed(tmp_path):
    broken = tmp_path / "custom_nodes" / "broken"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise RuntimeError('broken pack')\n")
    server = ComfyServer(tmp_path)
    with pytest.raises(ServerFailed, match="broken pack"), server:
        pass
    assert not server.client.is_ready()

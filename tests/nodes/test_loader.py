"""The loader through a live server: what it lists, and when it reads a file again."""

import pytest
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.client import ExecutionFailed
from td_pack.tests.support.jobs import i2v_job, loader, node, t2v_job

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def folder(server):
    """A stock model whole, in parts, and packed to 4 bits, under the server's models."""
    folder = server.models_dir / "diffusion_models"
    sd = checkpoints.stock(7, layers=1)
    checkpoints.write_safetensors(folder / "whole.safetensors", sd)
    lingbot.write_shards(folder / "parts" / "high_noise_model", sd, 3)
    checkpoints.write_safetensors(folder / "high_noise_model_bnb_nf4" / "model.safetensors", lingbot.packed(sd))
    return folder


INDEX = "parts/high_noise_model/diffusion_pytorch_model.safetensors.index.json"
NF4 = "high_noise_model_bnb_nf4/model.safetensors"


@pytest.mark.parametrize("node_name", ["TurboDiffusionLoader", "TurboDiffusionConvert"])
def test_a_model_in_parts_is_listed_once(server, folder, node_name):
    options = server.client.object_info(node_name)["input"]["required"]["model_name"][1]["options"]
    assert INDEX in options and NF4 in options and "whole.safetensors" in options
    assert not [name for name in options if "-of-00003" in name]


def test_a_replaced_part_is_loaded_again(server, folder):
    job = t2v_job("part", model=loader(INDEX))
    server.client.run(job)
    assert "model" not in server.client.run(job).executed_nodes
    part = next((folder / "parts" / "high_noise_model").glob("*-00002-of-*"))
    content = part.read_bytes()
    part.unlink()
    with pytest.raises(
        ExecutionFailed, match="in 3 parts, of which 1 are missing: diffusion_pytorch_model-00002-of-00003"
    ):
        server.client.run(job)
    part.write_bytes(content)
    assert "model" in server.client.run(job).executed_nodes


def test_the_low_expert_s_file_is_left_to_the_run():
    from td_pack.nodes.loader import _is_second

    prompt = i2v_job("pair", 4, checkpoints.I2V_LOW)
    prompt["lora"] = node("TurboDiffusionLoRA", model=["low", 0], lora_name="", strength=1.0)
    prompt["sample"]["inputs"] |= {"low": ["lora", 0]}
    prompt["later"] = node("Curves", high=["sample", 0])  # reached through the run, not as its model
    assert [name for name in prompt if _is_second(prompt, name)] == ["low", "lora"]
    prompt["sample"]["inputs"]["high"] = ["low", 0]  # one file for both
    assert not _is_second(prompt, "low") and not _is_second({}, None)

"""The loader through a live server: what it lists, and that every kind of file it lists runs."""

import pytest
import torch
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.client import ExecutionFailed
from td_pack.tests.support.jobs import loader, node, sampled, saved, t2v_job

pytestmark = pytest.mark.server
LORA = "nf4.safetensors"


@pytest.fixture(scope="module")
def folder(server):
    """A stock model whole, in parts, and packed to 4 bits, under the server's models."""
    folder = server.models_dir / "diffusion_models"
    sd = checkpoints.upstream_state_dict(7, layers=1)
    sd["patch_embedding.weight"] = sd["patch_embedding.weight"].unflatten(1, (-1, 1, 2, 2)).contiguous()
    checkpoints.write_safetensors(folder / "whole.safetensors", sd)
    lingbot.write_shards(folder / "parts" / "high_noise_model", sd, 3)
    checkpoints.write_safetensors(folder / "high_noise_model_bnb_nf4" / "model.safetensors", lingbot.packed(sd))
    checkpoints.write_safetensors(server.models_dir / "loras" / LORA, checkpoints.lora("kohya"))
    return folder


INDEX = "parts/high_noise_model/diffusion_pytorch_model.safetensors.index.json"
NF4 = "high_noise_model_bnb_nf4/model.safetensors"


def sample(server, name: str, model: dict, **changes) -> torch.Tensor:
    server.client.run(t2v_job(name, model=model, **changes))
    return saved(server, name)


@pytest.mark.parametrize("node_name", ["TurboDiffusionLoader", "TurboDiffusionConvert"])
def test_a_model_in_parts_is_listed_once(server, folder, node_name):
    options = server.client.object_info(node_name)["input"]["required"]["model_name"][1]["options"]
    assert INDEX in options and NF4 in options and "whole.safetensors" in options
    assert not [name for name in options if "-of-00003" in name]


def test_parts_and_whole_give_the_same(server, folder):
    whole, parts = (
        sample(server, name, loader(file)) for name, file in (("whole", "whole.safetensors"), ("parts", INDEX))
    )
    # The same numbers at another alignment in memory: the matrix library may sum in another order.
    assert (parts - whole).norm() <= 1e-5 * whole.norm()


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


def test_4_bit_weights_run_with_and_without_a_lora(server, folder):
    plain = sample(server, "nf4", loader(NF4))
    whole = sample(server, "float", loader("whole.safetensors"))
    assert torch.isfinite(plain).all() and not torch.equal(plain, whole)
    changed = []
    for name, strength in (("LoraLoaderModelOnly", "strength_model"), ("TurboDiffusionLoRA", "strength")):
        lora = node(name, model=["model", 0], lora_name=LORA, **{strength: 1.0})
        changed.append(sample(server, name, loader(NF4), lora=lora, sample=sampled(high=["lora", 0])))
    change, same = changed[0] - plain, changed[1] - changed[0]
    assert change.norm() > 0.01 * plain.norm() and same.norm() <= 1e-3 * change.norm()
    assert torch.equal(sample(server, "again", loader(NF4), sample=sampled(sigma_max=80)), plain)

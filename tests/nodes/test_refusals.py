"""What does not fit is said in one sentence: before the run where the prompt shows it, else by the node that finds it."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.client import ExecutionFailed, PromptRejected
from td_pack.tests.support.jobs import attention, loader, node, sampled, t2v_job, text

pytestmark = pytest.mark.server


BAD_VALUES = [
    ("model", "model_name", "absent.pth", "value_not_in_list", "absent.pth"),
    ("model", "dtype", "int4", "value_not_in_list", "int4"),
    ("sample", "boundary", 0.0, "value_smaller_than_min", "boundary"),
    ("sample", "boundary", 1.5, "value_bigger_than_max", "boundary"),
    ("sample", "seed", -1, "value_smaller_than_min", "seed"),
    ("sample", "mode", "euler", "value_not_in_list", "euler"),
    ("sample", "steps", 0, "custom_validation_failed", "steps is 0: choose 1 to 16"),
    ("sample", "steps", 17, "custom_validation_failed", "steps is 17: choose 1 to 16"),
    ("sample", "sigma_max", 10.0, "custom_validation_failed", "it must exceed 14.2"),
    ("sample", "sigma_max", -1.0, "custom_validation_failed", "choose a positive number"),
    ("sample", "sigma_max", "inf", "custom_validation_failed", "choose a positive number"),
    ("sample", "latent", ["text", 0], "return_type_mismatch", "latent"),
]


@pytest.mark.parametrize("name,field,value,kind,details", BAD_VALUES)
def test_what_is_visible_before_running_is_a_node_error(server, name, field, value, kind, details):
    job = t2v_job("bad")
    job[name]["inputs"][field] = value
    with pytest.raises(PromptRejected) as caught:
        server.client.queue(job)
    errors = caught.value.node_errors[name]["errors"]
    assert any(error["type"] == kind and details in error["details"] for error in errors), errors


def test_a_bad_attention_share_is_a_node_error(server):
    for topk, kind in ((0.0, "value_smaller_than_min"), (1.1, "value_bigger_than_max")):
        job = t2v_job(
            "bad",
            sample=sampled(high=["attention", 0]),
            attention=attention("auto", topk=topk),
        )
        with pytest.raises(PromptRejected) as caught:
            server.client.queue(job)
        assert caught.value.node_errors["attention"]["errors"][0]["type"] == kind


BAD_LINKS = [
    ("wrong text encoder", {"text": text(width=768)}, "The text conditioning is 768 wide and this model takes 4096"),
    (
        "image latent",
        {"latent": node("EmptyLatentImage", width=64, height=64, batch_size=1)},
        "16-channel video latent",
    ),
    ("no image", {"model": loader(checkpoints.I2V_HIGH)}, "the conditioning holds no image"),
    (
        "other expert",
        {"low": loader(checkpoints.I2V_LOW), "sample": sampled(steps=4, low=["low", 0])},
        "their task differs",
    ),
    ("no negative", {"sample": sampled(cfg_high=2.0)}, "needs a negative conditioning"),
    (
        "blocks",
        {"attention": attention(dense_blocks="7"), "sample": sampled(high=["attention", 0])},
        "this model's blocks are 0 to 1",
    ),
    ("other loader", {"model": node("VAELoader", vae_name=checkpoints.VAE)}, None),
]


@pytest.mark.parametrize("problem,changes,message", BAD_LINKS, ids=[case[0] for case in BAD_LINKS])
def test_what_arrives_on_a_link_is_the_node_s_error(server, problem, changes, message):
    job = t2v_job("bad", **changes)
    if message is None:
        with pytest.raises(PromptRejected):
            server.client.queue(job)
        return
    with pytest.raises(ExecutionFailed, match=message):
        server.client.run(job)


FILES = {
    "empty.pth": (b"", "empty.pth is empty; download it again"),
    "page.pth": (b"<!DOCTYPE html><html></html>" * 9, "page.pth is a web page"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    "lora.safetensors": (
        {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 256)},
        "looks like a LoRA",
    ),
    "vae.safetensors": (
        {"decoder.head.0.gamma": torch.zeros(8, 1, 1, 1), "encoder.x": torch.zeros(1)},
        "looks like a VAE",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_wan_model_says_what_it_is(server, name):
    content, message = FILES[name]
    path = server.models_dir / "diffusion_models" / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".pth"):
        checkpoints.write_pth(path, content)
    else:
        checkpoints.write_safetensors(path, content)
    with pytest.raises(ExecutionFailed, match=message):
        server.client.run(t2v_job("bad", model=loader(name)))


def test_a_cut_file_says_so_and_the_next_prompt_works(server):
    whole = server.models_dir / "diffusion_models" / checkpoints.T2V_SLA
    (server.models_dir / "diffusion_models" / "cut.pth").write_bytes(whole.read_bytes()[:-5000])
    with pytest.raises(ExecutionFailed, match="cut.pth is cut short: its end is missing; download it again"):
        server.client.run(t2v_job("bad", model=loader("cut.pth")))
    server.client.run(t2v_job("after cut"))


@pytest.mark.parametrize(
    "name,content,message", [("page", b"<!DOCTYPE html>", "is a web page"), ("none", b"", "is empty")]
)
def test_a_file_that_is_no_lora_says_what_it_is(server, name, content, message):
    path = server.models_dir / "loras" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    lora = node("TurboDiffusionLoRA", model=["model", 0], lora_name=path.name, strength=1.0)
    with pytest.raises(ExecutionFailed, match=f"{path.name} {message}"):
        server.client.run(t2v_job("bad", lora=lora, sample=sampled(high=["lora", 0])))

"""What does not fit is said in one sentence: before the run where the prompt shows it, else by the node that finds
it."""

import math

import pytest
import torch
from td_pack.tests.support import checkpoints, vaes
from td_pack.tests.support.client import ExecutionFailed, PromptRejected
from td_pack.tests.support.jobs import attention, custom_sampled, loader, node, sampled, t2v_job, text

pytestmark = pytest.mark.server


BAD_VALUES = [
    ("model", "model_name", "absent.pth", "value_not_in_list", "absent.pth"),
    ("sample", "boundary", 1.5, "value_bigger_than_max", "boundary"),
    ("sample", "steps", 0, "custom_validation_failed", "steps is 0: choose 1 to 16"),
    ("sample", "steps", 17, "custom_validation_failed", "steps is 17: choose 1 to 16"),
    ("sample", "sigma_max", 10.0, "custom_validation_failed", "it must exceed 14.2"),
    ("sample", "sigma_max", -1.0, "custom_validation_failed", "choose a positive number"),
    ("sample", "sigma_max", "inf", "custom_validation_failed", "choose a positive number"),
    ("sample", "latent", ["text", 0], "return_type_mismatch", "latent"),
    ("sample", "high", ["vae", 0], "return_type_mismatch", "high"),
    ("sample", "cfg_high", math.inf, "value_bigger_than_max", "cfg_high"),
    ("sample", "sigma_max", math.nan, "custom_validation_failed", "sigma_max is nan: choose a positive number"),
    ("sample", "seed", math.nan, "invalid_input_type", "seed"),
    ("sample", "high", 5, "bad_linked_input", "high"),
    ("sample", "positive", None, "bad_linked_input", "positive"),
    ("sample", "low", {"__value__": ["missing", 0]}, "bad_linked_input", "low"),
    ("attention", "mode", {"__value__": ["missing", 0]}, "bad_linked_input", "mode"),
    ("attention", "topk", 0.0, "value_smaller_than_min", "topk"),
    ("attention", "topk", 1.1, "value_bigger_than_max", "topk"),
]


@pytest.mark.parametrize("name,field,value,kind,details", BAD_VALUES)
def test_what_is_visible_before_running_is_a_node_error(server, name, field, value, kind, details):
    more = {"attention": attention(), "vae": node("VAELoader", vae_name=checkpoints.VAE)}
    job = t2v_job("bad", **more, sample=sampled(high=["attention", 0]))
    job[name]["inputs"][field] = value
    with pytest.raises(PromptRejected) as caught:
        server.client.queue(job)
    errors = caught.value.node_errors[name]["errors"]
    assert any(error["type"] == kind and details in error["details"] for error in errors), errors


BAD_LINKS = [
    ("wrong text encoder", {"text": text(width=768)}, "The text conditioning is 768 wide and this model takes 4096"),
    ("no negative", {"sample": sampled(cfg_high=2.0)}, "needs a negative conditioning"),
    ("cfg_high", {"sample": sampled(cfg_high=math.nan)}, "^cfg_high is nan: give a finite number"),
    (
        "linked cfg_low",
        {"number": node("PrimitiveFloat", value="nan"), "sample": sampled(cfg_low=["number", 0])},
        "^cfg_low is nan: give a finite number",
    ),
    (
        "cfg_high of the guider",
        {
            "noise": node("RandomNoise", noise_seed=1),
            "sampler": node("TurboDiffusionSampler", mode="ode", noise_device="cpu"),
            "sigmas": node("TurboDiffusionSigmas", steps=2, sigma_max=80.0, boundary=0.9),
            "guider": node(
                "TurboDiffusionGuider", high=["model", 0], positive=["text", 0], boundary=0.9, cfg_high=math.nan
            ),
            "sample": custom_sampled(["latent", 0]),
        },
        "^cfg_high is nan: give a finite number",
    ),
    (
        "blocks",
        {"attention": attention(dense_blocks="7"), "sample": sampled(high=["attention", 0])},
        "this model's blocks are 0 to 1",
    ),
]


@pytest.mark.parametrize("problem,changes,message", BAD_LINKS, ids=[case[0] for case in BAD_LINKS])
def test_what_arrives_on_a_link_is_the_node_s_error(server, problem, changes, message):
    with pytest.raises(ExecutionFailed, match=message):
        server.client.run(t2v_job("bad", **changes))


@pytest.mark.parametrize("decode", ["TurboDiffusionVAEDecode", "TurboDiffusionVAEDecodeVideo"])
def test_a_vae_of_another_model_is_refused_before_a_step(server, decode):
    checkpoints.write_safetensors(server.models_dir / "vae" / "taesd.safetensors", vaes.taesd_state_dict())
    rate = {"fps": 16.0} if decode.endswith("Video") else {}
    job = t2v_job("bad") | {
        "vae": node("VAELoader", vae_name="taesd.safetensors"),
        "decode": node(decode, samples=["sample", 0], vae=["vae", 0], **rate),
        "used": node("PreviewAny", source=["decode", 0]),
    }
    del job["save"]
    result = server.client.run(job, check=False)
    assert result.error["exception_message"].startswith("This VAE decodes images of 4 channels and the model makes")
    assert result.error["exception_type"] == "TurboDiffusion.Error"
    assert "sample" not in result.executed_nodes


def lora_of(value: float) -> dict[str, torch.Tensor]:
    layer = "diffusion_model.blocks.0.self_attn.q"
    return {f"{layer}.lora_A.weight": torch.full((2, 256), value), f"{layer}.lora_B.weight": torch.zeros(256, 2)}


FILES = [
    ("diffusion_models", "page.pth", b"<!DOCTYPE html><html></html>" * 9, "page.pth is a web page"),
    (
        "diffusion_models",
        "lora.safetensors",
        {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(4, 256)},
        "looks like a LoRA",
    ),
    ("loras", "page.safetensors", b"<!DOCTYPE html>", "page.safetensors is a web page"),
    ("loras", "empty.safetensors", b"", "empty.safetensors is empty"),
    ("loras", "nan.safetensors", lora_of(math.nan), "nan.safetensors cannot be used: .* holds NaN or infinite values"),
    ("loras", "inf.safetensors", lora_of(-math.inf), "inf.safetensors cannot be used: .* holds NaN or infinite values"),
    ("loras", "good.safetensors", lora_of(0.0), "strength is nan: give a finite number"),
]


@pytest.mark.parametrize("folder,name,content,message", FILES, ids=[f"{row[0]}-{row[1]}" for row in FILES])
def test_a_file_of_another_kind_says_what_it_is_and_the_next_prompt_works(server, folder, name, content, message):
    path = server.models_dir / folder / name
    if isinstance(content, bytes):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    else:
        checkpoints.write_safetensors(path, content)
    if folder == "loras":
        lora = node(
            "TurboDiffusionLoRA",
            model=["model", 0],
            lora_name=name,
            strength=math.nan if name == "good.safetensors" else 1.0,
        )
        job = t2v_job("bad", lora=lora, sample=sampled(high=["lora", 0]))
    else:
        job = t2v_job("bad", model=loader(name))
    with pytest.raises(ExecutionFailed, match=message):
        server.client.run(job)
    server.client.run(t2v_job("after"))

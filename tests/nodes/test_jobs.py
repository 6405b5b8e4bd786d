"""Jobs queued through a live server: what the nodes return, what they cache, and what they say when something is
wrong."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.client import ExecutionFailed
from td_pack.tests.support.jobs import attention, custom_sampled, i2v_job, loader, node, sampled, saved, t2v_job

pytestmark = pytest.mark.server


def test_the_separate_nodes_give_the_same_bits_as_the_all_in_one(server):
    job = i2v_job("whole", 4, checkpoints.I2V_LOW, sigma_max=200)
    server.client.run(job)
    parts = {name: job[name] for name in ("model", "low", "text", "vae", "picture", "latent")} | {
        "sigmas": node("TurboDiffusionSigmas", steps=4, sigma_max=200, boundary=0.9),
        "sampler": node("TurboDiffusionSampler", mode="sde", noise_device="cpu"),
        "guider": node("TurboDiffusionGuider", high=["model", 0], positive=["latent", 0], boundary=0.9, low=["low", 0]),
        "noise": node("RandomNoise", noise_seed=3),
        "sample": custom_sampled(["latent", 2]),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="parts"),
    }
    server.client.run(parts)
    assert torch.equal(saved(server, "whole"), saved(server, "parts"))


@pytest.mark.parametrize("steps,reads_low", [(1, False), (2, False), (3, True)])
def test_a_run_that_never_needs_the_low_expert_does_not_load_it(server, steps, reads_low):
    """The low expert's file is no model: touching it is an error."""
    (server.models_dir / "diffusion_models" / "untouchable.pth").write_bytes(b"not a model")
    job = i2v_job("lazy", steps, "untouchable.pth")
    if reads_low:
        with pytest.raises(ExecutionFailed, match="untouchable.pth is not a PyTorch zip checkpoint"):
            server.client.run(job)
    else:
        assert "low" not in server.client.run(job).executed_nodes


def test_only_what_changed_runs_again(server):
    server.client.run(t2v_job("cached"))
    again = server.client.run(t2v_job("cached", sample=sampled(seed=4)))
    assert set(again.executed_nodes) == {"sample", "save"}
    assert {"model", "text", "latent"} <= set(again.cached_nodes)


def test_progress_and_previews_reach_the_client(server):
    result = server.client.run(t2v_job("progress", sample=sampled(seed=11, steps=4)))
    assert [(p["value"], p["max"]) for p in result.of("progress") if p["node"] == "sample"] == [
        (i, 4) for i in range(1, 5)
    ]
    assert result.previews_count >= 1


def test_our_lora_node_reports_its_layers_on_an_int8_model(server):
    checkpoints.write_pth(
        server.models_dir / "diffusion_models" / "quant.pth", checkpoints.upstream_state_dict(41, sla=True, int8=True)
    )
    checkpoints.write_safetensors(server.models_dir / "loras" / "peft.safetensors", checkpoints.lora("diffusion_model"))
    server.client.run(t2v_job("int8", model=loader("quant.pth")))
    lora = node("TurboDiffusionLoRA", model=["model", 0], lora_name="peft.safetensors", strength=0.8)
    job = t2v_job("int8 lora", model=loader("quant.pth"), lora=lora, sample=sampled(high=["lora", 0]))
    job["status"] = node("TurboDiffusionStatus", any=["sample", 0])
    result = server.client.run(job)
    assert result.outputs["lora"]["text"] == ["peft.safetensors: 3 of 3 layers"]
    assert "LoRA peft.safetensors at strength 0.8: 3 of 3 layers\n" in result.outputs["status"]["text"][0]
    # Two steps of 2 x 10 linears, all in int8 with the LoRA on.
    assert (
        "sample: network 2, sparse attention 4, dense attention 0, int8 linear 40, float linear 0"
        in result.outputs["status"]["text"][0]
    )
    assert not torch.equal(saved(server, "int8"), saved(server, "int8 lora"))


@pytest.mark.parametrize("dense_steps,calls", [(0, (8, 0)), (1, (6, 2))])
def test_the_status_counts_the_calls_of_the_run_before_it(server, dense_steps, calls):
    """Two blocks, four steps: every self-attention is sparse but those of the dense steps."""
    job = t2v_job("status", sla=attention(dense_steps=dense_steps), sample=sampled(31, 4, high=["sla", 0]))
    job["status"] = node("TurboDiffusionStatus", any=["sample", 0])
    text = server.client.run(job).outputs["status"]["text"][0]
    assert "sparse attention: batched; not triton: " in text and "int8 linear: torch; not triton: " in text
    assert "TurboWan T2V 2 layers of width 256 with SLA, computing in float32" in text
    counts = "sparse attention {}, dense attention {}".format(*calls)
    assert f"sample: network 4, {counts}, int8 linear 0, float linear 80" in text

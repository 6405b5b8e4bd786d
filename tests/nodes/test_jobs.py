"""Jobs queued through a live server: what the nodes return, what they cache, and what they say when something is wrong."""

import threading

import pytest
import safetensors.torch
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.client import ExecutionFailed, PromptRejected
from td_pack.tests.support.full_size import write_expert
from td_pack.tests.support.jobs import empty, i2v_job, loader, node, sampled, saved, t2v_job, text
from td_pack.tests.support.models import conditioning, relative_error

pytestmark = pytest.mark.server


@pytest.mark.parametrize("name,tolerance", [("t2v_dense", 1e-4), ("i2v_two_experts_sde", 1e-4), ("t2v_sla", 1e-3)])
def test_golden_samples_come_out_of_the_queue(server, name, tolerance):
    import comfy.latent_formats

    case, tensors = checkpoints.golden_case(name)
    latent_format = comfy.latent_formats.Wan21()
    for i, state_dict in enumerate(checkpoints.golden_state_dicts(case)):
        checkpoints.write_pth(server.models_dir / "diffusion_models" / f"{name}{i}.pth", state_dict)
    context, options = conditioning(case, tensors, latent_format)[0]
    given = {"context": context}
    if case["kind"] == "i2v":
        given |= {"image": options["concat_latent_image"], "mask": options["concat_mask"]}
    safetensors.torch.save_file({k: v.contiguous() for k, v in given.items()}, server.input_dir / f"{name}.safetensors")
    frames, height, width = tensors["x"].shape[2:]
    job = t2v_job(
        name,
        model=loader(f"{name}0.pth"),
        text=node("TestTensorConditioning", file=f"{name}.safetensors"),
        latent=empty(width * 8, height * 8, frames * 4 - 3),
        sample=sampled(case["seed"], case["steps"], mode="ode" if case["ode"] else "sde", boundary=case["boundary"]),
    )
    if case["seed_low"] is not None:
        job["low"] = loader(f"{name}1.pth")
        job["sample"]["inputs"]["low"] = ["low", 0]
    if case["sla_topk"]:
        job["attention"] = node(
            "TurboDiffusionSLA",
            model=["model", 0],
            mode="sla",
            topk=case["sla_topk"],
            dense_blocks="",
            allow_untrained=False,
        )
        job["sample"]["inputs"]["high"] = ["attention", 0]
    server.client.run(job)
    assert relative_error(latent_format.process_in(saved(server, name)), tensors["samples"]) <= tolerance


def test_the_separate_nodes_give_the_same_bits_as_the_all_in_one(server):
    job = i2v_job("whole", 4, checkpoints.I2V_LOW, sigma_max=200)
    server.client.run(job)
    parts = {name: job[name] for name in ("model", "low", "text", "vae", "picture", "latent")} | {
        "sigmas": node("TurboDiffusionSigmas", steps=4, sigma_max=200, boundary=0.9),
        "sampler": node("TurboDiffusionSampler", mode="sde", noise_device="cpu"),
        "guider": node("TurboDiffusionGuider", high=["model", 0], positive=["latent", 0], boundary=0.9, low=["low", 0]),
        "noise": node("RandomNoise", noise_seed=3),
        "sample": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["sampler", 0],
            sigmas=["sigmas", 0],
            latent_image=["latent", 2],
        ),
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


def test_a_replaced_file_is_loaded_again(server):
    path = server.models_dir / "diffusion_models" / "replaced.pth"
    checkpoints.write_pth(path, checkpoints.upstream_state_dict(5, layers=1))
    job = t2v_job("replaced", model=loader(path.name))
    server.client.run(job)
    first = saved(server, "replaced")
    checkpoints.write_pth(path.with_suffix(".new"), checkpoints.upstream_state_dict(6, layers=1))
    path.with_suffix(".new").replace(path)
    assert "model" in server.client.run(job).executed_nodes
    assert not torch.equal(first, saved(server, "replaced"))


def test_progress_and_previews_reach_the_client(server):
    result = server.client.run(t2v_job("progress", sample=sampled(seed=11, steps=4)))
    assert [(p["value"], p["max"]) for p in result.of("progress") if p["node"] == "sample"] == [
        (i, 4) for i in range(1, 5)
    ]
    assert result.previews_count >= 1


def test_a_batch_gives_as_many_videos(server):
    server.client.run(t2v_job("batch", latent=empty(batch_size=2)))
    assert saved(server, "batch").shape == (2, 16, 3, 8, 8)


@pytest.mark.parametrize("style", ["diffusion_model", "kohya"])
def test_stock_lora_nodes_work_on_the_model(server, style):
    name = f"{style}.safetensors"
    checkpoints.write_safetensors(server.models_dir / "loras" / name, checkpoints.lora(style))
    server.client.run(t2v_job("plain"))
    patched = t2v_job(
        "lora",
        lora=node("LoraLoaderModelOnly", model=["model", 0], lora_name=name, strength_model=1.0),
        sample=sampled(high=["lora", 0]),
    )
    log_before = len(server.log())
    server.client.run(patched)
    assert "lora key not loaded" not in server.log()[log_before:]
    assert not torch.equal(saved(server, "plain"), saved(server, "lora"))
    server.client.run(t2v_job("unpatched", sample=sampled(sigma_max=80)))  # the same run by its explicit value
    assert torch.equal(saved(server, "plain"), saved(server, "unpatched"))


def test_an_interrupt_inside_a_step_leaves_the_server_working(server):
    big = t2v_job("interrupted", latent=empty(384, 384, 33), sample=sampled(seed=21, steps=16))
    timers = []

    def interrupt_soon(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "sample" and not timers:
            timers.append(threading.Timer(0.05, server.client.interrupt))
            timers[0].start()

    result = server.client.run(big, on_event=interrupt_soon, check=False)
    assert result.interrupted and 1 <= len(result.of("progress")) < 16
    server.client.run(t2v_job("after", sample=sampled(seed=22)))
    assert torch.isfinite(saved(server, "after")).all()


def test_an_interrupt_while_the_low_expert_is_read_leaks_nothing(server):
    """The low expert's file takes seconds to read (its ffn is wide, its file sparse); the interrupt comes in the second of six high steps."""
    low = server.models_dir / "diffusion_models" / "wide_low.safetensors"
    write_expert(low, 0, sparse=True, dim=256, ffn_dim=1 << 22, layers=2, in_channels=36)
    job = i2v_job("overlap", 16, low.name)
    job["latent"]["inputs"] |= {"width": 128, "height": 128}

    def interrupt(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == "sample" and data["value"] == 1:
            server.client.interrupt()

    try:
        assert server.client.run(job, on_event=interrupt, check=False).interrupted
        report = server.client.run({"status": node("TurboDiffusionStatus")}).outputs["status"]["text"][0]
        assert "of the low expert read ahead: It was stopped" in report
        held = server.client.run({"process": node("TestProcess")}).outputs["process"]["text"]
        assert held and not [name for name in held if "read-ahead" in name or name.endswith(low.name)]
        server.client.run(i2v_job("after", 4, checkpoints.I2V_LOW))
        assert torch.isfinite(saved(server, "after")).all()
    finally:
        low.unlink()


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
            attention=node(
                "TurboDiffusionSLA", model=["model", 0], mode="auto", topk=topk, dense_blocks="", allow_untrained=False
            ),
        )
        with pytest.raises(PromptRejected) as caught:
            server.client.queue(job)
        assert caught.value.node_errors["attention"]["errors"][0]["type"] == kind


def attention(mode: str, dense_blocks: str = "") -> dict:
    return {
        "attention": node(
            "TurboDiffusionSLA",
            model=["model", 0],
            mode=mode,
            topk=0.1,
            dense_blocks=dense_blocks,
            allow_untrained=False,
        ),
        "sample": sampled(high=["attention", 0]),
    }


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
    ("blocks", attention("sla", "7"), "this model's blocks are 0 to 1"),
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
    assert result.outputs["lora"]["text"] == ["peft.safetensors: 3 layers"]
    # Two steps of 2 x 10 linears, all in int8 with the LoRA on.
    assert (
        "sample: network 2, sparse attention 4, dense attention 0, int8 linear 40, float linear 0"
        in result.outputs["status"]["text"][0]
    )
    assert not torch.equal(saved(server, "int8"), saved(server, "int8 lora"))


def test_the_status_reports_the_run_before_it(server):
    job = t2v_job("status", sample=sampled(seed=31, steps=4)) | {
        "status": node("TurboDiffusionStatus", any=["sample", 0])
    }
    text = server.client.run(job).outputs["status"]["text"][0]
    assert "sparse attention: torch; not triton: " in text and "int8 linear: torch; not triton: " in text
    # Two layers, four steps: every self-attention was sparse.
    assert "TurboWan T2V 2 layers of width 256 with SLA, computing in float32" in text
    assert "sample: network 4, sparse attention 8, dense attention 0, int8 linear 0, float linear 80" in text


def test_dense_first_steps(server):
    job = t2v_job("dense steps", sample=sampled(high=["sla", 0], seed=31, steps=4)) | {
        "sla": node(
            "TurboDiffusionSLA",
            model=["model", 0],
            mode="sla",
            topk=0.1,
            dense_blocks="",
            allow_untrained=False,
            dense_steps=1,
        ),
        "status": node("TurboDiffusionStatus", any=["sample", 0]),
    }
    text = server.client.run(job).outputs["status"]["text"][0]
    assert "sample: network 4, sparse attention 6, dense attention 2, int8 linear 0, float linear 80" in text

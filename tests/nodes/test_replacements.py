"""Workflows of older packs: their nodes are offered as ours in the editor, and their prompts run."""

import json

import pytest
from PIL import Image
from td_pack.nodes.replacements import OLD, with_absent_inputs
from td_pack.tests.support import checkpoints
from td_pack.tests.support.client import ExecutionFailed, PromptRejected
from td_pack.tests.support.jobs import attention, loader, node, sampled, saved, started, text

pytestmark = pytest.mark.server


def old_loader(name: str, **more) -> dict:
    return node("TurboWanModelLoader", model_name=name, **more)


SHARED = dict(vae=["vae", 0], aspect_ratio="1:1", seed=42)
DENSE = dict(attention_type="original", sla_topk=0.1, offload_mode="comfy_native")


def saved_frames(kind: str, prefix: str, format: str, frames: str = "sample", **more) -> dict:
    return node(kind, frames=[frames, 0], filename_prefix=prefix, fps=16, format=format, **more)


def i2v(**changes) -> dict:
    """As the editor exports a workflow of anveshane/Comfyui_turbodiffusion."""
    links = dict(high_noise_model=["high", 0], low_noise_model=["low", 0], conditioning=["text", 0], image=["image", 0])
    size = dict(resolution="custom", width=72, height=64)
    run = dict(num_frames=9, num_steps=4, boundary=0.9, sigma_max=200.0, use_ode=False)
    return {
        "high": old_loader(checkpoints.I2V_HIGH, **DENSE),
        "low": old_loader(checkpoints.I2V_LOW, **DENSE),
        "text": text(),
        "vae": node("TurboWanVAELoader", vae_name=checkpoints.VAE),
        "image": node("EmptyImage", width=90, height=60, batch_size=2, color=0xCC3300),
        "sample": node("TurboDiffusionI2VSampler", **links | SHARED | size | run | changes),
        "save": saved_frames("TurboDiffusionSaveVideo", "old i2v", "mp4", quality=8, optimize_gif=True),
    }


def t2v(format: str = "webm", **changes) -> dict:
    """As the editor exports a workflow of trandangtrungduc/Comfyui-TurboDiffusion-T2V, with a smaller video to save."""
    links = dict(model=["model", 0], conditioning=["text", 0])
    run = dict(prompt="", num_frames=5, num_steps=1, resolution="480", sigma_max=80.0, use_ode=True)
    kind = dict(attention_type="sla", sla_topk=0.1, offload_mode="cpu_only")
    return {
        "model": node("TurboWanT2VModelLoader", model_name=checkpoints.T2V_SLA, **kind),
        "text": text(),
        "vae": node("TurboWanT2VVAELoader", vae_name=checkpoints.VAE),
        "sample": node("TurboDiffusionT2VSampler", **links | SHARED | run | changes),
        "small": node("ImageScale", image=["sample", 0], upscale_method="area", width=32, height=32, crop="disabled"),
        "save": saved_frames("TurboDiffusionT2VSaveVideo", "old t2v", format, frames="small", quality=8),
    }


def test_the_editor_is_told_every_replacement(server):
    told = json.loads(server.client.get("/node_replacements"))
    info = server.client.object_info()
    for old in OLD:
        new = info[old.new]
        inputs = new["input"].get("required", {}) | new["input"].get("optional", {})
        for old_id in old.ids:
            (entry,) = told[old_id]
            assert entry["new_node_id"] == old.new and entry["old_widget_ids"] == list(old.widgets)
            given = {item["new_id"] for item in entry["input_mapping"]}
            assert given <= inputs.keys() and new["input"].get("required", {}).keys() <= given
            assert [item["new_idx"] for item in entry["output_mapping"]] == list(range(max(1, len(new["output"]))))


def test_old_i2v_prompt_equals_todays_graph(server):
    result = server.client.run(i2v())
    (file,) = result.files
    assert file["subfolder"] == "turbodiffusion_videos" and file["filename"].endswith(".mp4")

    job = i2v()
    size = dict(width=64, height=64)  # 72 is no multiple of 16, and 4.5 rounds to even
    for name, file in (("high", checkpoints.I2V_HIGH), ("low", checkpoints.I2V_LOW)):
        job |= {name: loader(file), f"{name} dense": attention("dense", name)}
    job["first"] = node("ImageFromBatch", image=["image", 0], batch_index=0, length=1)
    job["fitted"] = node("ImageScale", image=["first", 0], upscale_method="lanczos", crop="center", **size)
    job["vae"] = node("VAELoader", vae_name=checkpoints.VAE)
    job["start"] = started("fitted", **size)
    links = dict(high=["high dense", 0], low=["low dense", 0], positive=["start", 0], latent=["start", 2])
    job["sample"] = sampled(42, 4, **links, sigma_max=200.0, noise_device="gpu")
    job["frames"] = node("TurboDiffusionVAEDecode", samples=["sample", 0], vae=["vae", 0])
    job["save"] = node("SaveImage", images=["frames", 0], filename_prefix="new i2v")
    old = i2v() | {"save": node("SaveImage", images=["sample", 0], filename_prefix="old i2v")}
    pictures = [
        [Image.open(server.output_dir / file["filename"]).tobytes() for file in server.client.run(prompt).files]
        for prompt in (old, job)
    ]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 9


def test_old_prompts_may_leave_out_what_was_optional(server):
    old = i2v(num_steps=1, resolution="480")
    for name in ("width", "height"):
        del old["sample"]["inputs"][name]
    old["high"], old["low"] = old_loader(checkpoints.T2V_SLA), old_loader("not there.pth")
    with pytest.raises(PromptRejected) as caught:
        server.client.queue(old)
    assert caught.value.node_errors.keys() == {"low"}, "all else is complete"
    (error,) = caught.value.node_errors["low"]["errors"]
    assert error["type"] == "value_not_in_list"


def test_a_one_step_run_loads_no_low_expert(server):
    result = server.client.run(i2v(num_steps=1, use_ode=True))
    assert result.files and "low" not in result.executed_nodes


@pytest.mark.parametrize("format,suffix", [("gif", ".webp"), ("webm", ".webm")])
def test_old_t2v_prompt_runs(server, format, suffix):
    log_before = len(server.log())
    (file,) = server.client.run(t2v(format)).files
    assert file["filename"].endswith(suffix)
    assert ("ComfyUI does not write GIF" in server.log()[log_before:]) == (format == "gif")


def test_an_old_t2v_prompt_without_any_text_says_what_to_connect(server):
    with pytest.raises(ExecutionFailed, match="There is no text: connect text_encoder to Load CLIP"):
        server.client.run(t2v(prompt="a fox"))


def test_the_old_sampler_of_latents_is_wan_image_to_video(server):
    job = {
        "high": old_loader(checkpoints.I2V_HIGH, attention_type="original"),
        "text": text(),
        "vae": node("TurboWanVAELoader", vae_name=checkpoints.VAE),
        "image": node("EmptyImage", width=64, height=48, batch_size=1, color=0xCC3300),
        "start": started("image", kind="TurboWanSampler", height=48),
        "sample": sampled(1, 1, high=["high", 0], positive=["start", 0], latent=["start", 2]),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="old start"),
    }
    server.client.run(job)
    assert saved(server, "old start").shape == (1, 16, 3, 6, 8)


def test_requests_of_others_stay_as_they_are():
    others = {"1": None, "2": {"class_type": "KSampler", "inputs": {"seed": 1}}}
    for request in ({}, {"prompt": None}, {"prompt": others}):
        assert with_absent_inputs(json.loads(json.dumps(request))) == request

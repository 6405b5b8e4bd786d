"""Camera jobs on LingBot-World through a live server, and what the nodes say when something does not fit."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.client import ExecutionFailed
from td_pack.tests.support.jobs import camera_path, custom_sampled, loader, node, saved, started, text

pytestmark = pytest.mark.server
CAM_HIGH, CAM_LOW, ACT = "lingbot_cam_high.safetensors", "lingbot_cam_low.safetensors", "lingbot_act.safetensors"


@pytest.fixture(scope="module")
def models(server):
    folder = server.models_dir / "diffusion_models"
    for name, seed, control in ((CAM_HIGH, 81, "cam"), (CAM_LOW, 82, "cam"), (ACT, 83, "act")):
        checkpoints.write_safetensors(folder / name, lingbot.state_dict(seed, control, layers=1))
    return server


def camera_job(prefix: str, steps: int = 3, cfg: float = 2.0, **changes) -> dict:
    """Two experts with guidance, stock sampler and scheduler, a camera on both prompts; `changes` replaces nodes by
    name."""
    prompts = {"positive": ["video", 0], "negative": ["video", 1]}
    with_camera = {"positive": ["camera", 0], "negative": ["camera", 1]}
    guidance = {"low": ["low", 0], "boundary": 0.947, "cfg_high": cfg, "cfg_low": cfg}
    return {
        "high": loader(CAM_HIGH),
        "low": loader(CAM_LOW),
        "text": text(),
        "bad": text("blurry"),
        "vae": node("VAELoader", vae_name=checkpoints.VAE),
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=0x3366CC),
        "path": camera_path(),
        "embed": node("TurboDiffusionCameraEmbed", camera=["path", 0], width=64, height=48, control="cam"),
        "video": started(negative="bad", height=48, length=["path", 1]),
        "camera": node("TurboDiffusionCameraCondition", **prompts, camera_embed=["embed", 0]),
        "guider": node("TurboDiffusionGuider", high=["high", 0], **with_camera, **guidance),
        "sampler": node("KSamplerSelect", sampler_name="uni_pc_bh2"),
        "sigmas": node("BasicScheduler", model=["high", 0], scheduler="simple", steps=steps, denoise=1.0),
        "noise": node("RandomNoise", noise_seed=5),
        "sample": custom_sampled(["video", 2]),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    } | changes


def ran(server, prefix: str, **changes) -> torch.Tensor:
    server.client.run(camera_job(prefix, **changes))
    latent = saved(server, prefix)
    assert torch.isfinite(latent).all()
    return latent


def test_a_camera_on_both_prompts_moves_the_video_and_standing_still_is_not_having_none(models):
    result = models.client.run(camera_job("walk"))
    walk = saved(models, "walk")
    assert walk.shape == (1, 16, 3, 6, 8)  # 8 keys idle to 9 frames
    (picture,) = result.outputs["path"]["images"]
    with Image.open(io.BytesIO(models.client.view(picture))) as preview:
        assert preview.size == (960, 640)
    still = ran(models, "still", path=camera_path(source="preset", preset="static"))
    without = camera_job("none")
    without["guider"]["inputs"] |= {"positive": ["video", 0], "negative": ["video", 1]}
    models.client.run(without)
    none = saved(models, "none")
    for one, other in ((walk, still), (still, none), (walk, none)):
        assert (one - other).norm() > 0.01 * one.norm()
    without["guider"]["inputs"]["positive"] = ["camera", 0]
    models.client.run(without)
    assert not torch.allclose(saved(models, "none"), walk, atol=1e-3)


def test_act_models_take_their_keys(models):
    changes = {"high": loader(ACT), "low": loader(ACT), "embed": camera_job("act")["embed"]}
    changes["embed"]["inputs"]["control"] = "act"
    forward = ran(models, "act", **changes)
    back = ran(models, "act", **changes, path=camera_path(actions="s-4,iwd-3,none-1"))
    assert not torch.allclose(forward, back, atol=1e-3)  # the moves differ in their keys only


def test_a_recorded_camera_comes_from_its_folder_and_again_when_it_changes(models):
    _, tensors = checkpoints.golden_case("lingbot_act")
    folder = models.input_dir / "recorded"
    folder.mkdir()
    for name in ("poses", "intrinsics", "action"):
        np.save(folder / f"{name}.npy", tensors[name].numpy())
    path = camera_path(source="folder", folder=folder.name)
    first = ran(models, "recorded", path=path)
    np.save(folder / "poses.npy", tensors["poses"].numpy()[::-1])
    assert not torch.allclose(first, ran(models, "recorded", path=path), atol=1e-3)


WRONG = [
    ("channels", {"embed": {"control": "act"}}, "is for act models and this one is cam: set control to cam"),
    ("keys", {"path": {"actions": "q-3"}}, "actions has 'q-3'"),
    ("frames", {"path": {"source": "preset", "length": 80}}, "length is 80: .* choose 77 or 81"),
    ("way out", {"path": {"source": "folder", "folder": "../models"}}, "leads out of ComfyUI's input directory"),
]


@pytest.mark.parametrize("problem,changes,message", WRONG, ids=[case[0] for case in WRONG])
def test_what_does_not_fit_is_said(models, problem, changes, message):
    job = camera_job("wrong")
    for name, change in changes.items():
        job[name]["inputs"] |= change
    with pytest.raises(ExecutionFailed, match=message):
        models.client.run(job)

"""Real ComfyUI servers on simulated devices, with tiny models, and the prompts they answer."""

from pathlib import Path

from td_pack.tests.support import checkpoints, lingbot
from td_pack.tests.support.jobs import (
    camera_path,
    custom_sampled,
    empty,
    i2v_job,
    loader,
    node,
    sampled,
    started,
    t2v_job,
    text,
)
from td_pack.tests.support.server import ComfyServer

from .run import variables
from .settings import LAUNCH, Devices

INT8 = "tiny_t2v_int8.pth"
LORA = "tiny_lora.safetensors"
# The allocator of CUDA's driver and comfy-aimdo's virtual memory are not there. All memory but 0.8 GiB, which ComfyUI
# keeps for activations, is for weights.
ARGUMENTS = ("--disable-cuda-malloc", "--disable-dynamic-vram", "--reserve-vram", "0")
KEPT_FREE = int(0.8 * 2**30)


def write_own_models(folder: Path) -> None:
    """The files of the jobs that the shared server of the tests lacks."""
    state_dict = checkpoints.upstream_state_dict(41, sla=True, int8=True)
    checkpoints.write_pth(folder / "diffusion_models" / INT8, state_dict)
    checkpoints.write_safetensors(folder / "loras" / LORA, checkpoints.lora("diffusion_model"))


def device_server(base: Path, devices: Devices, *arguments: str) -> ComfyServer:
    """A server on these devices, with the models; `arguments` go to main.py."""
    for write in (checkpoints.write_models, lingbot.write_models, write_own_models):
        write(base / "models")
    return ComfyServer(
        base,
        test_nodes=True,
        extra_arguments=(*ARGUMENTS, *arguments),
        extra_environment=variables(devices),
        launcher=(str(LAUNCH),),
    )


def _latent_job(prefix: str, **changes: dict) -> dict:
    """Two steps at 128x128: 192 tokens are 3 key blocks, so that sparsity is real."""
    return t2v_job(prefix, latent=empty(width=128, height=128), **changes)


def _camera_job(prefix: str) -> dict:
    """Two steps of LingBot's two experts in 4 bits, with a camera."""
    return {
        "high": loader(lingbot.HIGH),
        "low": loader(lingbot.LOW),
        "text": text(),
        "vae": node("VAELoader", vae_name=checkpoints.VAE),
        "picture": node("EmptyImage", width=64, height=48, batch_size=1, color=0x3366CC),
        "path": camera_path(),
        "embed": node("TurboDiffusionCameraEmbed", camera=["path", 0], width=64, height=48, control="cam"),
        "video": started(height=48, length=["path", 1]),
        "camera": node(
            "TurboDiffusionCameraCondition",
            positive=["video", 0],
            negative=["video", 1],
            camera_embed=["embed", 0],
        ),
        "guider": node(
            "TurboDiffusionGuider", high=["high", 0], positive=["camera", 0], low=["low", 0], boundary=0.947
        ),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["high", 0], scheduler="simple", steps=2, denoise=1.0),
        "noise": node("RandomNoise", noise_seed=5),
        "sample": custom_sampled(["video", 2]),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    }


def _lora_job(prefix: str) -> dict:
    lora = node("TurboDiffusionLoRA", model=["model", 0], lora_name=LORA, strength=0.1)
    return _latent_job(prefix, model=loader(INT8), lora=lora, sample=sampled(high=["lora", 0]))


LATENT_JOBS = {
    "t2v-bf16": lambda prefix: _latent_job(prefix),
    "t2v-int8": lambda prefix: _latent_job(prefix, model=loader(INT8)),
    "i2v-two-experts": lambda prefix: i2v_job(prefix, 4, checkpoints.I2V_LOW),
    "lingbot-nf4-camera": _camera_job,
    "int8-lora": _lora_job,
}


def decode_job(prefix: str) -> dict:
    """Our decoder and ComfyUI's on one latent, compared by our node, and a video of it."""
    latent = node("TestRandomLatent", channels=16, length=3, height=8, width=8, seed=3)
    return {
        "latent": latent,
        "vae": node("VAELoader", vae_name=checkpoints.VAE),
        "ours": node("TurboDiffusionVAEDecode", samples=["latent", 0], vae=["vae", 0]),
        "stock": node("VAEDecode", samples=["latent", 0], vae=["vae", 0]),
        "compare": node("TurboDiffusionCompare", a=["ours", 0], b=["stock", 0], label_a="ours", label_b="stock"),
        "images": node("SaveImage", images=["ours", 0], filename_prefix=prefix),
        "video": node("TurboDiffusionVAEDecodeVideo", samples=["latent", 0], vae=["vae", 0], fps=16.0),
        "save": node("SaveVideo", video=["video", 0], filename_prefix=prefix, format="auto", codec="auto"),
    }

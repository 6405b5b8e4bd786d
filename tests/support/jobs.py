"""Prompts in API format, by node name, for jobs on the tiny checkpoints."""

from collections.abc import Callable

import safetensors.torch
import torch

from . import checkpoints, text_encoders
from .client import Result


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def loader(name: str) -> dict:
    return node("TurboDiffusionLoader", model_name=name, dtype="auto")


def text(words: str = "a red disc moves to the left", width: int = 4096) -> dict:
    return node("TestTextEmbedding", text=words, width=width)


def encoded(words=text_encoders.PROMPT, name: str = text_encoders.SMALL, cache: bool = True) -> dict:
    return node("TurboDiffusionTextEncode", encoder_name=name, text=words, cache=cache)


def empty(width: int = 64, height: int = 64, length: int = 9, batch_size: int = 1) -> dict:
    return node("EmptyHunyuanLatentVideo", width=width, height=height, length=length, batch_size=batch_size)


def sampled(seed: int = 3, steps: int = 2, **more) -> dict:
    inputs = dict(
        high=["model", 0],
        positive=["text", 0],
        latent=["latent", 0],
        seed=seed,
        steps=steps,
        sigma_max=0,
        boundary=0.9,
        mode="sde",
        noise_device="cpu",
    )
    return node("TurboDiffusionSample", **inputs | more)


def custom_sampled(latent: list) -> dict:
    """ComfyUI's sampler node over the nodes `noise`, `guider`, `sampler` and `sigmas`."""
    parts = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    return node("SamplerCustomAdvanced", **parts, latent_image=latent)


def attention(mode: str = "sla", model: str = "model", **more) -> dict:
    inputs = dict(model=[model, 0], mode=mode, topk=0.1, dense_blocks="", allow_untrained=False)
    return node("TurboDiffusionSLA", **inputs | more)


def started(picture: str = "picture", negative: str = "text", kind: str = "WanImageToVideo", **more) -> dict:
    """The latent and the conditioning of a video that begins with the image of node `picture`."""
    inputs = dict(
        positive=["text", 0],
        negative=[negative, 0],
        vae=["vae", 0],
        width=64,
        height=64,
        length=9,
        batch_size=1,
        start_image=[picture, 0],
    )
    return node(kind, **inputs | more)


def camera_path(**changes) -> dict:
    inputs = dict(
        source="actions",
        actions="w-4,iwd-3,none-1",
        preset="orbit_left",
        amount=1.0,
        ease="smooth",
        folder="",
        convention="opencv",
        length=9,
        fov=0.0,
    )
    return node("TurboDiffusionCameraPath", **inputs | changes)


def t2v_job(prefix: str, **changes: dict) -> dict:
    """Model, text, latent and sampler to a saved latent; `changes` replaces nodes by name."""
    return {
        "model": loader(checkpoints.T2V_SLA),
        "text": text(),
        "latent": empty(),
        "sample": sampled(),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    } | changes


def i2v_job(prefix: str, steps: int, low: str, **more) -> dict:
    return {
        "model": loader(checkpoints.I2V_HIGH),
        "low": loader(low),
        "text": text(),
        "vae": node("VAELoader", vae_name=checkpoints.VAE),
        "picture": node("EmptyImage", width=64, height=64, batch_size=1, color=0xCC3300),
        "latent": started(),
        "sample": sampled(steps=steps, positive=["latent", 0], latent=["latent", 2], low=["low", 0], **more),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    }


def saved(server, prefix: str) -> torch.Tensor:
    files = sorted(server.output_dir.glob(f"{prefix}_*.latent"))
    return safetensors.torch.load_file(files[-1])["latent_tensor"]


def with_gate(workflow: dict) -> dict:
    """The workflow with a gate before its decoder: a job goes on once the file exists that its `trouble.once` names."""
    (sample,) = (key for key, given in workflow.items() if given["class_type"] == "TurboDiffusionSample")
    held = {
        key: given
        | {"inputs": {name: ["trouble", 0] if v == [sample, 0] else v for name, v in given["inputs"].items()}}
        for key, given in workflow.items()
    }
    return held | {"trouble": node("TestTrouble", samples=[sample, 0], kind="gate", once="")}


def at_the_gate(event: dict) -> bool:
    """Whether this event of a batch says that a job waits at the gate."""
    return event["event"] == "progress" and event["node"].startswith("trouble ")


def run_held(server, prompt: dict, act: Callable[[], object]) -> Result:
    """Runs a prompt in which a test node holds a phase, and calls `act` once it does."""
    held = []

    def on_event(kind: str, _: dict) -> None:
        if kind == "test_held":
            held.append(kind)
            act()

    result = server.client.run(prompt, on_event=on_event, check=False)
    assert held == ["test_held"], result.error
    return result

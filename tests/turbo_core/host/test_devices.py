"""Sampling, decoding and comparing on emulated MPS and XPU devices (see `other_device`)."""

import functools
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy.model_management import CPUState, VRAMState
from td_pack.kernels import use_backend
from td_pack.nodes.compare import TurboDiffusionCompare
from td_pack.tests.support import checkpoints, lingbot, vaes
from td_pack.tests.support.experts import image_text, text
from td_pack.tests.support.models import loaded, relative_error
from td_pack.tests.support.other_device import OtherDevice
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.decode import decode_images
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.run import run

KINDS = ("mps", "xpu")
SHAPE = (1, 16, 3, 8, 8)


def select(kind: str, monkeypatch) -> None:
    """ComfyUI as it starts on a machine with this device, with the answers that its driver would give."""
    states = {"mps": (CPUState.MPS, VRAMState.SHARED), "xpu": (CPUState.GPU, VRAMState.NORMAL_VRAM)}
    monkeypatch.setattr(comfy.model_management, "cpu_state", states[kind][0])
    monkeypatch.setattr(comfy.model_management, "vram_state", states[kind][1])
    monkeypatch.setattr(comfy.model_management, "xpu_available", kind == "xpu")
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())  # on the device it asks for the driver
    for module, name, answer in (
        (comfy.model_management, "mac_version", (15, 0)),
        (torch.mps, "empty_cache", None),
        (torch.xpu, "empty_cache", None),
        (torch.xpu, "synchronize", None),
        (torch.xpu, "current_device", 0),
        (torch.xpu, "is_bf16_supported", True),
        (torch.xpu, "memory_stats", {"reserved_bytes.all.current": 0, "active_bytes.all.current": 0}),
        (torch.xpu, "get_device_properties", SimpleNamespace(total_memory=16 << 30, has_fp16=True)),  # an Arc card
    ):
        monkeypatch.setattr(module, name, lambda *args, answer=answer: answer)


@pytest.fixture(autouse=True)
def _on_their_own(monkeypatch, one_thread):
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    with torch.inference_mode():
        yield


def load(path: Path, state_dict) -> list:
    """A model of the checkpoint, which is written once."""
    return [load_model(str(path), "bf16") if path.exists() else loaded(path, state_dict(), "bf16")]


def upstream(folder: Path, seed: int = 1, **sizes) -> list:
    name = "-".join(["m", str(seed), *sizes])
    return load(folder / f"{name}.pth", lambda: checkpoints.upstream_state_dict(seed, layers=1, **sizes))


def int8(folder):
    return upstream(folder, int8=True, sla=True)


def lora(folder):
    return [with_lora(model, "lora", checkpoints.lora("diffusion_model"), 0.7)[0] for model in int8(folder)]


def sagesla(folder):
    return [with_attention(model, "sagesla", 0.5, "", False) for model in upstream(folder, sla=True)]


def experts(folder):
    return [model for seed in (2, 3) for model in upstream(folder, seed, in_channels=36)]


def nf4_camera(folder):
    return load(folder / "nf4.safetensors", lambda: lingbot.packed(lingbot.state_dict(5, "cam", layers=1)))


def sampled(models, mode: str, noise_device: str) -> torch.Tensor:
    """One step, or one of each expert."""
    spec, camera = models[0].model.spec, {}
    if spec.camera:
        camera = {"camera_conditions": checkpoints.draw(4, "camera", (1, lingbot.CHANNELS["cam"], *SHAPE[2:]))}
    positive = image_text(shape=SHAPE, **camera) if spec.takes_image else text()
    latent = {"samples": torch.zeros(SHAPE)}
    return run(models[0], positive, latent, 3, len(models), 0, 0.95, mode, noise_device, *models[1:])["samples"]


def demanded(backend: str | None):
    return nullcontext() if backend is None else use_backend(backend)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """What a CPU makes, computed once for both devices; and the folder of the checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def expect(make, mode, noise_device, backend):
        with demanded(backend):
            return sampled(make(folder), mode, noise_device)

    return expect, folder


# The operators and the layers know one kind of device without kernels, so that what differs on the second is ComfyUI's
# handling of weights: it is run there too with two experts of float weights, and with int8 weights, sparse attention
# and a LoRA in one.
@pytest.mark.parametrize(
    "kind, make, mode, noise_device, backend",
    [
        ("mps", int8, "ode", "cpu", "torch"),
        ("mps", lora, "ode", "cpu", None),
        ("xpu", lora, "ode", "cpu", None),
        ("mps", sagesla, "ode", "cpu", None),
        ("mps", experts, "sde", "gpu", None),
        ("xpu", experts, "sde", "gpu", None),
        ("mps", nf4_camera, "ode", "cpu", None),
    ],
)
def test_sampling(kind, monkeypatch, make, mode, noise_device, backend, on_cpu):
    """No tensor has a dtype that the device lacks, and the latent is the CPU's."""
    expect, folder = on_cpu
    expected = expect(make, mode, noise_device, backend)
    select(kind, monkeypatch)
    with OtherDevice(kind) as other, demanded(backend):
        models = make(folder)
        out = sampled(models, mode, noise_device)
    assert {"aten.addmm.default", "aten.convolution.default"} <= other.operators  # the network did run there
    assert models[0].model.calls["sparse attention"] == (make in (int8, sagesla, lora))
    # A CPU multiplies int8 codes, a GPU without kernels the 16-bit values that they stand for: one percent of rounding.
    tolerance = 1e-2 if make is lora else 0
    assert out.device.type == "cpu" and relative_error(out, expected) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_decode(kind, monkeypatch):
    z = checkpoints.draw(1, "z", (1, 16, 2, 1, 1))
    expected = decode_images(vaes.wan21(), z)
    select(kind, monkeypatch)
    with OtherDevice(kind) as other:
        out = decode_images(vaes.wan21(), z)
    assert "aten.convolution.default" in other.operators
    assert torch.equal(out, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_compare(kind, monkeypatch, tmp_path):
    a, b = torch.rand(2, 2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    select(kind, monkeypatch)
    with OtherDevice(kind):
        report = TurboDiffusionCompare.execute(a, b, "a", "b").args[2]
    assert report.startswith("a against b: 2 frames of 16x16")

"""Apple's MPS and Intel's XPU, which this machine lacks: the whole path on tensors that say they are there (see `other_device`)."""

from contextlib import nullcontext

import comfy.model_management
import folder_paths
import pytest
import torch
from comfy.model_management import CPUState, VRAMState
from td_pack.kernels import use_backend
from td_pack.nodes.compare import TurboDiffusionCompare
from td_pack.tests.support import checkpoints, lingbot, vaes
from td_pack.tests.support.models import relative_error
from td_pack.tests.support.other_device import DeviceError, OtherDevice
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.decode import decode_images
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.lora import with_lora
from td_pack.turbo_core.host.run import run

KINDS = ("mps", "xpu")
SHAPE = (1, 16, 3, 8, 8)


class Properties:
    """Of an Arc card."""

    total_memory = 16 << 30
    has_fp16 = True


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
        (torch.xpu, "get_device_properties", Properties),
    ):
        monkeypatch.setattr(module, name, lambda *args, answer=answer: answer)


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "current_loaded_models", [])
    with torch.inference_mode():
        yield request.param


def pth(folder, seed: int = 1, **sizes):
    return str(checkpoints.write_pth(folder / f"{seed}.pth", checkpoints.upstream_state_dict(seed, layers=1, **sizes)))


def bf16(folder):
    return [load_model(pth(folder), "bf16")]


def int8(folder):
    return [load_model(pth(folder, int8=True, sla=True), "bf16")]


def sla(folder):
    return [with_attention(load_model(pth(folder, sla=True), "bf16"), "sla", 0.5, "", False)]


def sagesla(folder):
    return [with_attention(load_model(pth(folder, sla=True), "bf16"), "sagesla", 0.5, "", False)]


def lora(folder):
    return [with_lora(model, "lora", checkpoints.lora("diffusion_model"), 0.7)[0] for model in int8(folder)]


def experts(folder):
    return [load_model(pth(folder, seed, in_channels=36), "bf16") for seed in (2, 3)]


def nf4_camera(folder):
    packed = lingbot.packed(lingbot.state_dict(5, "cam", layers=1))
    return [load_model(str(checkpoints.write_safetensors(folder / "nf4.safetensors", packed)), "bf16")]


def sampled(models, mode: str, noise_device: str) -> torch.Tensor:
    """One step, or four with two experts."""
    spec, options = models[0].model.spec, {}
    if spec.takes_image:
        image = checkpoints.draw(3, "image", SHAPE)
        options = {"concat_latent_image": image, "concat_mask": torch.ones(1, 1, *SHAPE[2:])}
    if spec.camera:
        options["camera_conditions"] = checkpoints.draw(4, "camera", (1, lingbot.CHANNELS["cam"], *SHAPE[2:]))
    positive, latent = [[checkpoints.draw(1, "text", (1, 16, 4096)), options]], {"samples": torch.zeros(SHAPE)}
    steps = 4 if models[1:] else 1
    return run(models[0], positive, latent, 3, steps, 0, 0.9, mode, noise_device, *models[1:])["samples"]


@pytest.mark.parametrize(
    "load, mode, noise_device, backend",
    [
        (bf16, "ode", "cpu", None),
        (int8, "ode", "cpu", None),
        (int8, "ode", "cpu", "torch"),
        (sla, "sde", "cpu", None),
        (sagesla, "ode", "cpu", None),
        (lora, "ode", "cpu", None),
        (experts, "sde", "gpu", None),
        (nf4_camera, "ode", "cpu", None),
    ],
)
def test_sampling(kind, monkeypatch, load, mode, noise_device, backend, tmp_path):
    """The device is given nothing that it lacks, and what it makes is what the CPU makes."""
    expected = sampled(load(tmp_path), mode, noise_device)
    select(kind, monkeypatch)
    with OtherDevice(kind) as other, nullcontext() if backend is None else use_backend(backend):
        models = load(tmp_path)
        out = sampled(models, mode, noise_device)
    assert {"aten.addmm.default", "aten.convolution.default"} <= other.operators  # the network did run there
    assert models[0].model.calls["sparse attention"] == (load in (int8, sla, sagesla, lora))
    # A CPU multiplies int8 codes, a GPU without kernels the 16-bit values that they stand for: one percent of rounding.
    tolerance = 1e-2 if load in (int8, lora) and backend is None else 0
    assert out.device.type == "cpu" and relative_error(out, expected) <= tolerance


def test_decode(kind, monkeypatch):
    z = checkpoints.draw(1, "z", (1, 16, 2, 2, 2))
    expected = decode_images(vaes.wan21(), z)
    select(kind, monkeypatch)
    with OtherDevice(kind) as other:
        out = decode_images(vaes.wan21(), z)
    assert "aten.convolution.default" in other.operators
    assert torch.equal(out, expected)


def test_compare(kind, monkeypatch, tmp_path):
    a, b = torch.rand(2, 2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    select(kind, monkeypatch)
    with OtherDevice(kind):
        report = TurboDiffusionCompare.execute(a, b, "a", "b").args[2]
    assert report.startswith("a against b: 2 frames of 16x16")


@pytest.mark.parametrize(
    "put",
    [
        lambda x: x.double(),
        lambda x: torch.tensor([1.0], dtype=torch.float64, device=x.device),
        lambda x: x * torch.ones(3, dtype=torch.float64, device=x.device),
        lambda x: torch.fft.fft(x),
        lambda x: torch.ops.turbodiffusion.int8_quantize(x.expand(2, 3).double()),
    ],
)
def test_the_device_refuses_what_it_lacks(kind, put):
    """The guard itself."""
    with OtherDevice(kind) as other, pytest.raises(DeviceError, match=f"(float64|complex64) .* on {kind}"):
        put(torch.ones(3).to(other.device))


def test_the_device_refuses_tensors_of_the_host(kind):
    with OtherDevice(kind) as other, pytest.raises(RuntimeError, match="found two different devices"):
        torch.ones(3).to(other.device) + torch.ones(3)

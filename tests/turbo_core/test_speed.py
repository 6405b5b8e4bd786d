"""The line that tells a user whether the device is fast: a table of machines, decided by the real operators."""

import importlib.machinery
import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from td_pack.kernels import OPERATORS, self_test
from td_pack.turbo_core.speed import speed_line

PLAIN = "so sparse attention and int8 run in plain torch; "
RTX = "use an NVIDIA GPU of compute capability 8.0 or newer (RTX 30 series or newer)"
CASES = {
    "nvidia": (
        {"capability": (8, 9)},
        "Fast: sparse attention and int8 run in Triton kernels on Card 1.",
    ),
    "nvidia without triton, linux": (
        {"capability": (8, 9), "triton": None},
        f"Slow: Triton is not installed, {PLAIN}install it with: pip install triton",
    ),
    "nvidia without triton, windows": (
        {"capability": (12, 0), "triton": None, "system": "win32"},
        f"Slow: Triton is not installed, {PLAIN}install it with: pip install triton-windows",
    ),
    "nvidia before ampere": (
        {"capability": (7, 5)},
        "Slow: the Triton kernels do not run on this GPU (Card 1 has no bfloat16 tensor cores (compute capability "
        "8.0 or "
        f"newer is needed)), {PLAIN}for speed {RTX}.",
    ),
    "nvidia whose triton is broken": (
        {"capability": (8, 9), "fault": "its self-test of sparse_linear_attention is off by 40.0%"},
        f"Slow: Triton does not work here (its self-test of sparse_linear_attention is off by 40.0%), {PLAIN}"
        "reinstall it with: pip install --force-reinstall triton",
    ),
    "blackwell server with an old triton": (
        {"capability": (10, 0), "triton": "3.6.0"},
        "Fast: sparse attention runs in Triton kernels on Card 1; int8 weights are multiplied in 16 bits (before "
        "Triton "
        "3.9.0 its int8 products do not use this GPU's tensor cores of the fifth generation), update Triton with: "
        "pip install --upgrade triton",
    ),
    "amd": (
        {"architecture": "gfx942"},
        "Fast: sparse attention and int8 run in Triton kernels on Card 1.",
    ),
    "amd not supported": (
        {"architecture": "gfx1030"},
        "Slow: the Triton kernels do not run on this GPU (gfx1030 has no matrix instructions (on AMD, RDNA 3 or "
        "newer and the gfx9 chips have)), "
        f"{PLAIN}for speed {RTX}.",
    ),
    "amd with an old triton": (
        {"architecture": "gfx1100", "triton": "3.5.1"},
        "Slow: Triton is too old (on gfx1100 its kernels need Triton 3.6.0 or newer, and this is 3.5.1), "
        f"{PLAIN}update it with: pip install --upgrade triton",
    ),
    "nothing passes its self-test": (
        {"capability": (8, 9), "fault": "its self-test is off by 40.0%", "faulty": ("triton", "batched", "torch")},
        "Slow: Triton does not work here (its self-test is off by 40.0%), so sparse attention cannot run and int8 "
        "runs in plain "
        "torch; reinstall it with: pip install --force-reinstall triton",
    ),
    "mps": ({"kind": "mps"}, f"Slow: Triton does not reach an Apple GPU, {PLAIN}for speed {RTX}."),
    "xpu": ({"kind": "xpu"}, f"Slow: Triton does not reach an Intel GPU, {PLAIN}for speed {RTX}."),
    "cpu": ({"kind": "cpu"}, f"Slow: this is a CPU, {PLAIN}{RTX}, and the torch build made for it."),
    "cpu by choice": (
        {"kind": "cpu", "started_with_cpu": True},
        f"Slow: ComfyUI was started with --cpu, {PLAIN}start it without --cpu if this machine has a GPU.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_line_fits_the_machine(monkeypatch, name):
    machine, expected = CASES[name]
    # Decisions are kept for each device: every machine has another number.
    device = torch.device(machine.get("kind", "cuda"), 64 + list(CASES).index(name))
    version, find_spec = machine.get("triton", "3.9.0"), importlib.util.find_spec
    spec = version and importlib.machinery.ModuleSpec("triton", None)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda given, *rest: spec if given == "triton" else find_spec(given, *rest)
    )
    monkeypatch.setattr(sys.modules["triton"], "__version__", version)
    monkeypatch.setattr(sys, "platform", machine.get("system", "linux"))
    monkeypatch.setattr(torch.version, "hip", "6.4" if "architecture" in machine else None)
    properties = SimpleNamespace(gcnArchName=machine.get("architecture"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: machine.get("capability"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card 1")
    faults = dict.fromkeys(machine.get("faulty", ("triton",)), machine.get("fault"))
    monkeypatch.setattr(self_test, "fault", lambda backend, *rest: faults.get(backend.name))
    assert speed_line(device, machine.get("started_with_cpu", False)) == expected


def test_where_nothing_can_be_tested_the_line_says_so():
    def choose(device):
        raise torch.OutOfMemoryError

    full = dict.fromkeys(OPERATORS, SimpleNamespace(choose=choose))
    assert speed_line(torch.device("cuda"), operators=full).startswith("Not known: the device had no free memory")

"""Where each backend is available, and the reason where it is not."""

import sys
from types import SimpleNamespace

import pytest
import torch
from td_pack import kernels
from td_pack.kernels import backends, self_test
from td_pack.kernels.attention.pv_format import sage_pv_format
from td_pack.kernels.backends import triton_unavailable
from td_pack.kernels.norm import custom_ops as norm
from td_pack.tests.support.fresh import fresh
from td_pack.tests.support.kernels import row

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_triton_hidden(tmp_path):
    """No triton on the machine: everything imports and runs, and the reason names the package to install."""
    out = fresh(
        """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "comfy_kitchen"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
load_pack()
import importlib.util, torch
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("triton", "comfy_kitchen") else find(name, *rest)
from td_pack import kernels
from td_pack.kernels.backends import triton_unavailable
q, k, v = torch.randn(3, 1, 200, 2, 128)
kernels.sparse_linear_attention(q, k, v, None, None, 0.4)
kernels.sparse_linear_attention(q, k, v, None, None, 0.4, "int8")
x, weight = torch.randn(1, 140, 256), kernels.quantize_block(torch.randn(128, 256))
kernels.int8_linear(x, *weight)
codes = kernels.layer_norm_modulate_quantize(x, *torch.randn(2, 1, 1, 256))
kernels.int8_matmul_gelu_quantize(*codes, *weight, None, torch.bfloat16)
loaded = (name.split(".") for name in sys.modules)
ours = {"triton", "comfy_kitchen"}
print(*(name for name in loaded if name[0] == "triton" or (name[0] == "td_pack" and ours & set(name))))
print(triton_unavailable(torch.device("cuda")))
for title, operator in kernels.OPERATORS.items():
    print(operator.choose(torch.device("cpu")))
""",
        tmp_path,
    )
    modules, reason, *choices = out.splitlines()
    assert modules == ""
    assert reason == "it is not installed (pip install triton; on Windows triton-windows)"
    assert len(choices) == 8
    assert all(
        choice.startswith(("batched; ", "torch; ")) and "not triton: it does not reach" in choice for choice in choices
    )


@pytest.mark.parametrize(
    "architecture, reason",
    [
        *((name, None) for name in ("gfx942", "gfx1100", "gfx1101", "gfx1151", "gfx1200", "gfx1201")),
        ("gfx1030", "gfx1030 has no matrix instructions (on AMD, RDNA 3 or newer and the gfx9 chips have)"),
        ("gfx1250", "its kernels are made for AMD's RDNA 3, RDNA 4 and gfx9 chips, and this is gfx1250"),
    ],
)
def test_rocm(monkeypatch, architecture, reason):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(backends, "triton_version", lambda: (3, 6, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=architecture))
    assert triton_unavailable(GPU) == reason


@pytest.mark.parametrize("architecture, major, minor", [("gfx942", 9, 4), ("gfx1151", 11, 5)])
def test_rdna_needs_a_triton_that_was_tried(monkeypatch, architecture, major, minor):
    properties = SimpleNamespace(gcnArchName=architecture, major=major, minor=minor)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(backends, "triton_version", lambda: (3, 5, 1))
    monkeypatch.setattr(self_test, "fault", lambda *given: None)
    reason = "on gfx1151 its kernels need Triton 3.6.0 or newer, and this is 3.5.1"
    assert triton_unavailable(GPU) == (None if architecture == "gfx942" else reason)
    monkeypatch.setattr(backends, "triton_version", lambda: (3, 9, 0))
    chosen = {title: operator.choose(GPU) for title, operator in kernels.OPERATORS.items()}
    for operator in ("sparse attention", "sage attention", "int8 linear"):
        assert chosen[operator].backend == "triton"
    assert sage_pv_format(GPU).name == "fp16" and kernels.automatic_format(GPU).name == ""


def test_old_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 2080")
    assert triton_unavailable(GPU).startswith("RTX 2080 has no bfloat16 tensor cores")


def test_triton_that_does_not_import(monkeypatch):
    """As triton-windows without a compiler, or a wheel for another Python."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    assert triton_unavailable(GPU).startswith("it cannot be imported (")


class TestComfyKitchen:
    """Its compiled kernels need a GPU; its plain ones have the same signatures and stand in for them here."""

    @pytest.fixture
    def installed(self):
        pytest.importorskip("comfy_kitchen", reason="comfy_kitchen comes with ComfyUI")
        from td_pack.kernels.norm import comfy_kitchen as kitchen

        kitchen._backend.cache_clear()
        yield kitchen
        kitchen._backend.cache_clear()

    @pytest.fixture
    def kitchen(self, installed, monkeypatch):
        from comfy_kitchen.backends import eager

        def get_implementation(function, backend):
            assert backend == "cuda"
            return getattr(eager, function)

        registry = SimpleNamespace(
            is_available=lambda name: name == "cuda",
            validate_backend_for_call=lambda name, function, given: SimpleNamespace(success=True),
            get_implementation=get_implementation,
        )
        monkeypatch.setattr(installed, "registry", registry)
        monkeypatch.setattr(installed, "_example", lambda function: {})
        return installed

    def test_computes_what_the_definitions_say(self, kitchen):
        assert kitchen.unavailable(GPU) is None
        assert self_test.fault(row("comfy_kitchen"), "norm", "norm", CPU) is None

    def test_runs_where_triton_does_not(self, kitchen, availability):
        availability(triton="it is not installed", comfy_kitchen=None)
        assert norm.RMS_NORM_ROPE.choose(CPU) == ("comfy_kitchen", {"triton": "it is not installed"})
        x, (shift, scale) = torch.randn(2, 9, 200), torch.randn(2, 2, 3, 200)
        expected = kernels.norm.reference.layer_norm_modulate(x, shift, scale, eps=1e-6)
        assert torch.equal(kernels.layer_norm_modulate(x, shift, scale), expected), (
            "a modulation by frame is not its own"
        )

    def test_disabled_by_the_host(self, installed, monkeypatch):
        """As ComfyUI does below CUDA 13, whether or not there is a GPU."""
        monkeypatch.setattr(installed.registry, "_disabled", set())
        assert torch.cuda.is_available() or installed.unavailable(GPU).startswith("its cuda backend is not available")
        for name in ("cuda", "hip"):
            installed.registry.disable(name)
        installed._backend.cache_clear()
        assert installed.unavailable(GPU).startswith("its cuda backend is disabled, its hip backend is ")

"""Who runs an operator on which device, and what is said about the others."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch
from td_pack import kernels
from td_pack.kernels import OPERATORS, NoBackendError, backends, counting, self_test, use_backend
from td_pack.kernels.backends import Operator, slow_int8, triton_unavailable, unavailable
from td_pack.kernels.ops import attention, int8, norm
from td_pack.kernels.reference import sla
from td_pack.tests.support.fresh import fresh
from td_pack.tests.support.interpreter import DEVICE

CPU, GPU, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
FAMILIES = sorted({operator.family for operator in OPERATORS.values()})


@pytest.fixture(autouse=True)
def decided_anew():
    """Decisions are kept per device for the life of a process; these tests make their own."""
    caches = unavailable, triton_unavailable, slow_int8, attention._warn_dense
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def qkv(width: int = 128) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(3, 1, 200, 2, width, generator=torch.Generator().manual_seed(1)))


def test_the_choice_says_why_each_faster_backend_does_not_run():
    assert all(operator.choose(CPU).backend == "torch" for operator in OPERATORS.values())
    choice = str(OPERATORS["norm and rope"].choose(CPU))
    assert choice.startswith("torch; ")
    assert "not triton: it does not reach a cpu device" in choice
    assert "not comfy_kitchen: its compiled kernels do not reach a cpu device" in choice
    assert "not comfy_kitchen: its int8_linear has one scale for each row" in str(OPERATORS["int8 linear"].choose(CPU))


def test_a_demanded_backend_runs_or_each_gives_its_reason():
    operator = OPERATORS["sparse attention"]
    for name in ("triton", "torch", "dense"):
        with use_backend(name):
            assert operator.choose(CPU).backend == name
    with use_backend("triton"), pytest.raises(NoBackendError) as error:
        kernels.sparse_linear_attention(*qkv(32), None, None, 0.4)
    assert str(error.value) == (
        "No backend can run sparse_linear_attention: triton: its kernels have head widths (64, 128), not 32; "
        "torch: triton was demanded; dense: triton was demanded."
    )
    assert operator.choose(CPU).backend == "torch"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_self_test_passes_on_working_kernels(backend, family):
    assert self_test.fault(backend, family, DEVICE) is None


def test_the_self_test_passes_on_dequantized_weights():
    assert self_test.fault("dequantized", "int8", DEVICE) is None


@pytest.mark.parametrize(
    "capability, triton, slow",
    [((10, 0), (3, 6, 0), True), ((10, 3), (3, 8, 1), True), ((10, 0), (3, 9, 0), False), ((9, 0), (3, 6, 0), False)]
    + [((12, 0), (3, 6, 0), False), ((8, 6), (3, 6, 0), False)],
)
def test_int8_is_not_multiplied_where_that_is_slower(monkeypatch, capability, triton, slow):
    monkeypatch.setattr(backends, "triton_unavailable", lambda device: None)
    monkeypatch.setattr(backends, "triton_version", lambda: triton)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(self_test, "fault", lambda *given: None)
    choice = OPERATORS["int8 linear"].choose(GPU)
    assert choice.backend == ("dequantized" if slow else "triton")
    assert ("before Triton 3.9.0 its int8 products do not use" in str(choice)) == slow
    assert kernels.multiplies_codes(GPU) != slow
    assert OPERATORS["sparse attention"].choose(GPU).backend == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dequantized_weight_is_multiplied_in_float_and_counted_so(dtype):
    generator = torch.Generator().manual_seed(2)
    x, bias = torch.randn(2, 9, 200, generator=generator).to(dtype), torch.randn(140, generator=generator)
    codes, scales = kernels.quantize_block(torch.randn(140, 200, generator=generator))
    counter = kernels.tally.Counter()
    with use_backend("dequantized"), counting(counter):
        actual = kernels.int8_linear(x, codes, scales, bias)
    weight = kernels.dequantize_block(codes, scales, dtype)
    assert torch.equal(actual, torch.nn.functional.linear(x, weight, bias.to(dtype))) and not counter


@pytest.mark.parametrize("name", ["sparse attention", "8-bit sparse attention", "int8 linear", "norm and rope"])
def test_the_self_test_finds_a_broken_kernel(monkeypatch, name):
    broken, load = OPERATORS[name], Operator.load

    def loaded(operator, backend):
        run = load(operator, backend)
        return (lambda **given: 1.1 * run(**given)) if operator is broken and backend == "triton" else run

    monkeypatch.setattr(Operator, "load", loaded)
    assert self_test.fault("triton", broken.family, DEVICE).startswith(f"its self-test of {broken.function} is off by")


def failing(monkeypatch, *backends_that_fail: str):
    """The named backends reach the device and raise there, as one does that lacks an operation."""
    monkeypatch.setattr(backends, "triton_unavailable", lambda device: None)

    def fault(backend, family, device):
        if backend in backends_that_fail:
            raise NotImplementedError(f"aten::gather is not implemented for {device}")
        return None

    monkeypatch.setattr(self_test, "fault", fault)


def test_the_ladder_goes_down_by_what_fails(monkeypatch):
    operator = OPERATORS["sparse attention"]
    failing(monkeypatch)
    assert operator.choose(OTHER) == ("triton", {})
    unavailable.cache_clear()
    failing(monkeypatch, "triton")
    assert operator.choose(OTHER).backend == "torch"
    unavailable.cache_clear()
    failing(monkeypatch, "triton", "torch")
    choice = operator.choose(OTHER)
    assert choice.backend == "dense"
    assert (
        "its self-test failed (NotImplementedError: aten::gather is not implemented for mps)"
        in choice.rejected["torch"]
    )
    with pytest.raises(
        NoBackendError, match=r"No backend can run int8_matmul: .*triton: its self-test.*; torch: its self"
    ):
        int8.MATMUL.choose(OTHER)
    assert OPERATORS["int8 linear"].choose(OTHER).backend == "dequantized"


def test_the_self_test_runs_once_per_device(monkeypatch):
    calls = []
    monkeypatch.setattr(backends, "triton_unavailable", lambda device: None)
    monkeypatch.setattr(self_test, "fault", lambda *given: calls.append(given))
    for _ in range(3):
        OPERATORS["sparse attention"].choose(OTHER)
        OPERATORS["int8 linear"].choose(OTHER)
    assert calls == [("triton", "attention", OTHER), ("triton", "int8", OTHER)]


def test_full_attention_stands_in_with_one_warning(caplog):
    """Where not even the definition runs: more than was asked for, said once and counted as what it is."""
    counter = kernels.tally.Counter()
    with use_backend("dense"), counting(counter), caplog.at_level(logging.WARNING, "turbodiffusion"):
        for _ in range(2):
            actual = kernels.sparse_linear_attention(*qkv(), torch.eye(128), torch.zeros(128), 0.4)
    assert counter == {"dense attention": 2}
    assert [record.message.startswith("Sparse attention cannot run on cpu") for record in caplog.records] == [True]
    whole = sla.sparse_linear_attention(*qkv(), None, None, topk=1.0)
    torch.testing.assert_close(actual, whole)  # every block listed: the same sums in another order
    assert actual.is_contiguous()


def test_triton_hidden(tmp_path):
    """No triton on the machine: everything imports and runs, and the reason names the package to install."""
    out = fresh(
        """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("triton", "comfy_kitchen"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
load()
import importlib.util, torch
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("triton", "comfy_kitchen") else find(name, *rest)
from pack import kernels
from pack.kernels.backends import triton_unavailable
q, k, v = torch.randn(3, 1, 200, 2, 128)
kernels.sparse_linear_attention(q, k, v, None, None, 0.4)
kernels.sparse_linear_attention(q, k, v, None, None, 0.4, "int8")
x, weight = torch.randn(1, 140, 256), kernels.quantize_block(torch.randn(128, 256))
kernels.int8_linear(x, *weight)
codes = kernels.layer_norm_modulate_quantize(x, *torch.randn(2, 1, 1, 256))
kernels.int8_matmul_gelu_quantize(*codes, *weight, None, torch.bfloat16)
print(*(name for name in sys.modules if name.startswith(("triton.", "pack.kernels.triton", "pack.kernels.kitchen"))))
print(triton_unavailable(torch.device("cuda")))
for title, operator in kernels.OPERATORS.items():
    print(operator.choose(torch.device("cpu")))
""",
        tmp_path,
    )
    modules, reason, *choices = out.splitlines()
    assert modules == ""
    assert reason == "it is not installed (pip install triton; on Windows triton-windows)"
    assert len(choices) == 7
    assert all(choice.startswith("torch; ") and "not triton: it does not reach" in choice for choice in choices)


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


@pytest.mark.parametrize("architecture", ["gfx942", "gfx1151"])
def test_rdna_needs_a_triton_that_was_tried_and_has_no_8_bit_attention(monkeypatch, architecture):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=architecture))
    monkeypatch.setattr(backends, "triton_version", lambda: (3, 5, 1))
    monkeypatch.setattr(self_test, "fault", lambda *given: None)
    reason = "on gfx1151 its kernels need Triton 3.6.0 or newer, and this is 3.5.1"
    assert triton_unavailable(GPU) == (None if architecture == "gfx942" else reason)
    triton_unavailable.cache_clear()
    monkeypatch.setattr(backends, "triton_version", lambda: (3, 9, 0))
    chosen = {title: operator.choose(GPU) for title, operator in OPERATORS.items()}
    assert chosen["sparse attention"].backend == chosen["int8 linear"].backend == "triton"
    sage = attention.SAGE_SPARSE_LINEAR.choose(GPU)
    assert sage.backend == ("triton" if architecture == "gfx942" else "torch")
    assert (
        architecture == "gfx942" or "is not made for AMD's RDNA chips (gfx1151): choose sla" in sage.rejected["triton"]
    )


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
        from td_pack.kernels.kitchen import norm as kitchen

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
        assert kitchen.unavailable() is None
        assert self_test.fault("comfy_kitchen", "norm", CPU) is None

    def test_runs_where_triton_does_not(self, kitchen, monkeypatch):
        monkeypatch.setattr(backends, "triton_unavailable", lambda device: "it is not installed")
        monkeypatch.setattr(backends, "_kitchen_unavailable", lambda device: kitchen.unavailable())
        assert norm.RMS_NORM_ROPE.choose(CPU) == ("comfy_kitchen", {"triton": "it is not installed"})
        x, (shift, scale) = torch.randn(2, 9, 200), torch.randn(2, 2, 3, 200)
        expected = kernels.reference.norm.layer_norm_modulate(x, shift, scale, eps=1e-6)
        assert torch.equal(kernels.layer_norm_modulate(x, shift, scale), expected), (
            "a modulation by frame is not its own"
        )

    def test_disabled_by_the_host(self, installed, monkeypatch):
        """As ComfyUI does below CUDA 13, whether or not there is a GPU."""
        monkeypatch.setattr(installed.registry, "_disabled", set())
        assert torch.cuda.is_available() or installed.unavailable().startswith("its cuda backend is not available")
        for name in ("cuda", "hip"):
            installed.registry.disable(name)
        installed._backend.cache_clear()
        assert installed.unavailable().startswith("its cuda backend is disabled, its hip backend is ")

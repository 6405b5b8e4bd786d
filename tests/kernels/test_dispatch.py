"""Which backend runs an operator on which device, and what is said about the others."""

from collections import Counter

import pytest
import torch
from td_pack import kernels
from td_pack.kernels import OPERATORS, NoBackendError, counting, self_test, use_backend
from td_pack.kernels.int8 import custom_ops as int8

CPU, GPU, OTHER = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


def test_the_choice_says_why_each_faster_backend_does_not_run():
    chosen = {title: operator.choose(CPU).backend for title, operator in OPERATORS.items()}
    assert chosen == dict.fromkeys(OPERATORS, "torch") | {"sparse attention": "batched"}
    choice = str(OPERATORS["norm and rope"].choose(CPU))
    assert choice.startswith("torch; ")
    assert "not triton: it does not reach a cpu device" in choice
    assert "not comfy_kitchen: its compiled kernels do not reach a cpu device" in choice
    assert "not comfy_kitchen: its int8_linear has one scale for each row" in str(OPERATORS["int8 linear"].choose(CPU))
    quantize = str(OPERATORS["norm, modulation and quantization"].choose(CPU))
    assert "not comfy_kitchen: its adaln does not quantize" in quantize


def test_a_demanded_backend_runs_or_each_gives_its_reason():
    operator = OPERATORS["sparse attention"]
    for name in ("triton", "batched", "torch"):
        with use_backend(name):
            assert operator.choose(CPU).backend == name
    q, k, v = torch.randn(3, 1, 200, 2, 32, generator=torch.Generator().manual_seed(1))
    with use_backend("triton"), pytest.raises(NoBackendError) as error:
        kernels.sparse_linear_attention(q, k, v, None, None, 0.4)
    assert str(error.value) == (
        "No backend can run sparse_linear_attention: triton: its kernels support a head_dim of 64 or 128, not 32; "
        "batched: triton was demanded; torch: triton was demanded."
    )
    with use_backend("dequantized"), pytest.raises(NoBackendError, match="dequantized: it has no int8_matmul;"):
        int8.MATMUL.choose(CPU)
    assert operator.choose(CPU).backend == "batched"


@pytest.mark.parametrize(
    "capability, triton, slow",
    [((10, 0), (3, 6, 0), True), ((10, 3), (3, 8, 1), True), ((10, 0), (3, 9, 0), False), ((9, 0), (3, 6, 0), False)]
    + [((12, 0), (3, 6, 0), False), ((8, 6), (3, 6, 0), False)],
)
def test_int8_is_not_multiplied_where_that_is_slower(monkeypatch, availability, capability, triton, slow):
    availability(triton=None)
    monkeypatch.setattr(kernels.backends, "triton_version", lambda: triton)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(self_test, "fault", lambda *given: None)
    choice = OPERATORS["int8 linear"].choose(GPU)
    assert choice.backend == ("dequantized" if slow else "triton")
    assert ("before Triton 3.9.0 its int8 products do not use" in str(choice)) == slow
    assert kernels.multiplies_codes(GPU) != slow
    assert OPERATORS["sparse attention"].choose(GPU).backend == "triton"


def test_automatic_attention_is_sage_attention_where_its_kernels_are_faster_and_right(monkeypatch, availability):
    wrong = "its self-test of sage_sparse_linear_attention is off by 90.0%"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(kernels.attention.pv_format, "triton_version", lambda: (3, 6, 0))
    for fault, expected in ((None, "int8"), (wrong, "")):
        faults = {("triton", "sage"): fault}
        monkeypatch.setattr(self_test, "fault", lambda backend, _, cases, __, f=faults: f.get((backend.name, cases)))
        availability(triton=None)
        told = fault or "predicted to take 38% of the time in 16 bits (fp8 37%)"
        assert kernels.automatic_format(GPU) == (expected, told)
    monkeypatch.setattr(self_test, "fault", lambda *given: None)
    availability(triton=None)
    assert kernels.automatic_format(GPU, {"triton": "its kernels are for other tensors"}).name == ""
    kernels.check_sparse_attention(GPU, kernels.AUTOMATIC)


def test_automatic_attention_on_a_cpu_is_in_the_precision_of_its_tensors():
    assert kernels.automatic_format(CPU) == ("", "Triton does not run: it does not reach a cpu device")
    q, k, v = torch.randn(3, 1, 200, 2, 64, generator=torch.Generator().manual_seed(5))
    counter = Counter()
    with counting(counter):
        automatic, plain, sage = (
            kernels.sparse_linear_attention(q, k, v, None, None, 0.5, pv) for pv in (kernels.AUTOMATIC, "", "int8")
        )
    assert torch.equal(automatic, plain) and not torch.equal(plain, sage)
    assert counter == {"sparse attention": 3, "sage attention": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dequantized_weight_is_multiplied_in_float_and_counted_so(dtype):
    generator = torch.Generator().manual_seed(2)
    x, bias = torch.randn(2, 9, 200, generator=generator).to(dtype), torch.randn(140, generator=generator)
    codes, scales = kernels.quantize_block(torch.randn(140, 200, generator=generator))
    counter = Counter()
    with use_backend("dequantized"), counting(counter):
        actual = kernels.int8_linear(x, codes, scales, bias)
    weight = kernels.dequantize_block(codes, scales, dtype)
    assert torch.equal(actual, torch.nn.functional.linear(x, weight, bias.to(dtype))) and not counter


def failing(monkeypatch, *names: str):
    """The named backends raise in their self-test, as one does that lacks an operation."""

    def fault(backend, folder, cases, device):
        if backend.name in names:
            raise NotImplementedError(f"aten::gather is not implemented for {device}")
        return None

    monkeypatch.setattr(self_test, "fault", fault)


def test_the_next_backend_runs_where_one_fails(monkeypatch, availability):
    operator = OPERATORS["sparse attention"]
    failing(monkeypatch)
    availability(triton=None)
    assert operator.choose(OTHER) == ("triton", {})
    failing(monkeypatch, "triton")
    availability(triton=None)
    assert operator.choose(OTHER).backend == "batched"
    failing(monkeypatch, "triton", "batched", "torch")
    availability(triton=None)
    reason = "its self-test failed (NotImplementedError: aten::gather is not implemented for mps)"
    with pytest.raises(NoBackendError) as error:
        operator.choose(OTHER)
    assert error.value.reasons == f"triton: {reason}; batched: {reason}; torch: {reason}"
    with pytest.raises(NoBackendError, match="No backend can run sage_sparse_linear_attention: triton: its self-test"):
        kernels.check_sparse_attention(OTHER, "fp16")
    assert OPERATORS["int8 linear"].choose(OTHER).backend == "dequantized"


def test_the_self_test_runs_once_per_device(monkeypatch, availability):
    calls = []
    availability(triton=None)
    monkeypatch.setattr(self_test, "fault", lambda *given: calls.append((given[0].name, *given[1:])))
    for _ in range(3):
        OPERATORS["sparse attention"].choose(OTHER)
        OPERATORS["sage attention"].choose(OTHER)
        OPERATORS["int8 linear"].choose(OTHER)
    assert calls == [
        ("triton", "attention", "attention", OTHER),
        ("triton", "attention", "sage", OTHER),
        ("triton", "int8", "int8", OTHER),
    ]


@pytest.mark.parametrize(
    "error, raised",
    [
        (torch.cuda.OutOfMemoryError("Allocation on device"), torch.cuda.OutOfMemoryError),
        (RuntimeError("Triton Error [CUDA]: out of memory"), torch.cuda.OutOfMemoryError),
        (MemoryError(), MemoryError),
    ],
)
def test_a_lack_of_memory_is_raised_and_not_remembered(monkeypatch, availability, error, raised):
    """ComfyUI then frees memory and the next run tests the backend again."""
    errors = [error]

    def fault(*given):
        if errors:
            raise errors.pop()

    availability(triton=None)
    monkeypatch.setattr(self_test, "fault", fault)
    with pytest.raises(raised):
        OPERATORS["sparse attention"].choose(OTHER)
    assert OPERATORS["sparse attention"].choose(OTHER) == ("triton", {})

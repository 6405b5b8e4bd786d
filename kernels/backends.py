"""Which implementation runs an operator: decided from declared constraints before the call, never by trying and failing.

    triton   the GPU kernels in `triton/`, where Triton can be imported, reaches the device and passes a self-test
    torch    the definitions in `reference/`: any device, the same numerics, sparse where the operator is sparse

The device's part of the decision is made once per device, the tensors' part at each call."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch

HALF = (torch.float16, torch.bfloat16)
HEAD_WIDTHS = (64, 128)
_MIN_CAPABILITY = (8, 0)  # bf16 and int8 tensor cores (NVIDIA)


class Choice(NamedTuple):
    """The backend that runs an operator, and why each faster one does not."""

    backend: str
    rejected: dict[str, str]

    def __str__(self) -> str:
        return "; ".join([self.backend, *(f"not {name}: {reason}" for name, reason in self.rejected.items())])


class NoBackendError(RuntimeError):
    """A backend was demanded that cannot run the request; the text names its reason."""


_demanded: ContextVar[str | None] = ContextVar("turbodiffusion_demanded_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every operator runs on backend `name` ("triton" or "torch") or raises NoBackendError: for tests and
    benchmarks. "triton" then also takes CPU tensors, for Triton's interpreter."""
    token = _demanded.set(name)
    try:
        yield
    finally:
        _demanded.reset(token)


def load(operator: str, module: str, backend: str) -> Callable:
    """The function `operator` of backend `backend`, whose module is imported at its first use."""
    package = "triton" if backend == "triton" else "reference"
    return getattr(importlib.import_module(f".{package}.{module}", __package__), operator)


def choose(tensor: torch.Tensor, unfit: str | None) -> Choice:
    """The backend for a request about `tensor`; `unfit` is why its shapes or dtypes do not suit the kernels, or None.

    Raises NoBackendError if `use_backend` demands what cannot be had."""
    demanded = _demanded.get()
    if demanded == "torch":
        return Choice("torch", {"triton": "torch was demanded"})
    reason = unfit
    if demanded is None:
        reason = triton_unavailable(tensor.device) or reason
    if reason is None:
        return Choice("triton", {})
    if demanded == "triton":
        raise NoBackendError(f"triton cannot run this request: {reason}.")
    return Choice("torch", {"triton": reason})


@functools.cache
def triton_unavailable(device: torch.device) -> str | None:
    """Why the Triton kernels do not run on a device, or None if they do. The self-test runs here, once per device."""
    if device.type != "cuda":
        return f"it does not reach a {device.type} device"
    if importlib.util.find_spec("triton") is None:
        return "it is not installed (pip install triton; on Windows triton-windows)"
    if torch.version.hip is not None:
        architecture = torch.cuda.get_device_properties(device).gcnArchName
        if not architecture.startswith("gfx9"):  # compiled for gfx11, the kernels run out of registers
            return f"its kernels are made for AMD's gfx9 chips, and this is {architecture}"
    elif torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no bfloat16 tensor cores (compute capability 8.0 or newer is needed)"
    try:
        importlib.import_module("triton")
    except (ImportError, OSError, RuntimeError) as error:
        return f"it cannot be imported ({error})"
    try:
        return _self_test(device)
    except Exception as error:  # noqa: BLE001 - compilers and drivers fail in every way; the reason goes into the status report
        return (
            f"its self-test failed ({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''})"
        )


def eight_bit_format(device: torch.device) -> tuple[str, str]:
    """The format in which 8-bit attention multiplies with v on a device ("fp16", "int8" or "fp8"), and why."""
    reason = triton_unavailable(device)
    if reason is not None:
        return "fp16", f"the most exact, since Triton does not run: {reason}"
    if torch.version.hip is not None:
        return "fp16", "the others are not tried on this kind of GPU"
    version = tuple(int(part) for part in importlib.import_module("triton").__version__.split("+")[0].split(".")[:3])
    choice = load("default_pv", "sage_attention", "triton")(torch.cuda.get_device_capability(device), version)
    return choice[0] or "fp16", choice[2]


def _self_test(device: torch.device) -> str | None:
    """Compares the attention and the int8 kernels with their definitions on small ragged inputs; None if they agree."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 384 + 7, 2, 128, generator=generator) for _ in range(3))
    weight, bias = torch.randn(128, 128, generator=generator) / 12, torch.randn(128, generator=generator)
    codes, scales = load("quantize_block", "int8", "torch")(weight)
    cases = (
        (
            "attention",
            "sparse_linear_attention",
            "sla",
            "block_sparse_attention",
            (q, k, v, weight, bias),
            {"topk": 1.0},
        ),
        ("int8", "int8_linear", "int8", "int8_linear", (q[:, :, 0], codes, scales, bias), {}),
    )
    for name, operator, reference, kernel, given, options in cases:
        expected = load(operator, reference, "torch")(*given, **options)
        narrow = (x if x is scales or x is codes else x.bfloat16() for x in given)
        actual = load(operator, kernel, "triton")(*(x.to(device) for x in narrow), **options)
        error = ((actual.cpu().float() - expected).norm() / expected.norm()).item()
        # bf16 inputs and output carry 2^-9 relative error each; a broken kernel is off by tens of per cent. NaN fails too.
        if not error < 2e-2:
            return f"its self-test of {name} is off by {error:.1%}"
    return None

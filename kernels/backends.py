"""Which implementation runs an operator: decided from declared constraints before the call, never by trying and failing.

    triton          the GPU kernels in `triton/`, where Triton can be imported and reaches the device
    comfy_kitchen   its compiled kernels, where it has the same function of the same tensors (`kitchen/`)
    dequantized     for int8 linears, on a GPU that multiplies int8 no faster than 16 bits or has no kernel for it
    torch           the definitions in `reference/`, or the same made for speed in `torch/`: any device, sparse where the operator is
    dense           for sparse attention alone, where even the definition does not run: full attention, with a warning

The device's part of the decision (is the backend there, does it pass a self-test) is made once per device, the tensors' part
at each call."""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from . import amd

HALF = (torch.float16, torch.bfloat16)
HEAD_WIDTHS = (64, 128)
_MIN_CAPABILITY = (8, 0)  # bf16 and int8 tensor cores (NVIDIA)
_INT8_ON_10 = (3, 9, 0)  # the first Triton that compiles int8 products to UTCIMMA on compute capability 10.x


class Choice(NamedTuple):
    """The backend that runs an operator, and why each faster one does not."""

    backend: str
    rejected: dict[str, str]

    def __str__(self) -> str:
        return "; ".join([self.backend, *(f"not {name}: {reason}" for name, reason in self.rejected.items())])


class NoBackendError(RuntimeError):
    """No backend can run the request, or not the one that was demanded; the text names each and its reason."""


@dataclass(frozen=True)
class Operator:
    """An operator and where its implementations are: `modules` by backend, fastest first.

    `family` says which self-test covers it. `never` gives, by backend, the reason that holds on every device: for a backend
    that has an operator of this name which is another function."""

    function: str
    family: str
    modules: Mapping[str, str]
    never: dict[str, str] = field(default_factory=dict)

    def choose(self, device: torch.device, unfit: Mapping[str, str | None] | None = None) -> Choice:
        """The backend for a request on `device`; `unfit` says by backend why its tensors do not suit it.

        Raises NoBackendError if there is none."""
        demanded, rejected = _demanded.get(), {}
        for backend in self.modules:
            if demanded is None:
                reason = unavailable(backend, self.family, device)
            else:
                reason = None if backend == demanded else f"{demanded} was demanded"
            reason = reason or (unfit or {}).get(backend)
            if reason is None:
                return Choice(backend, rejected | self.never)
            rejected[backend] = reason
        reasons = "; ".join(f"{backend}: {reason}" for backend, reason in (rejected | self.never).items())
        raise NoBackendError(f"No backend can run {self.function}: {reasons}.")

    def load(self, backend: str) -> Callable:
        """The implementation of a backend, whose module is imported at its first use."""
        return getattr(importlib.import_module(f".{self.modules[backend]}", __package__), self.function)

    def find(self, device: torch.device, unfit: Mapping[str, str | None] | None = None) -> Callable:
        """The implementation for a request, as `choose`."""
        return self.load(self.choose(device, unfit).backend)


_demanded: ContextVar[str | None] = ContextVar("turbodiffusion_demanded_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every operator runs on backend `name` or raises NoBackendError: for tests and benchmarks. "triton"
    then also takes CPU tensors, for Triton's interpreter."""
    token = _demanded.set(name)
    try:
        yield
    finally:
        _demanded.reset(token)


@functools.cache
def unavailable(backend: str, family: str, device: torch.device) -> str | None:
    """Why a backend does not run a family of operators on a device, or None if it does. The self-test runs here."""
    missing = {"comfy_kitchen": _kitchen_unavailable, "dequantized": _on_cpu}.get(backend, lambda device: None)
    if backend == "triton":
        missing = {"int8": slow_int8, "8-bit attention": _sage_unavailable}.get(family, triton_unavailable)
    reason = missing(device)
    if reason is not None or backend == "dense" or (backend == "torch" and device.type in ("cpu", "meta")):
        return reason
    self_test = importlib.import_module(".self_test", __package__)
    try:
        return self_test.fault(backend, family, device)
    except Exception as error:  # noqa: BLE001 - compilers and drivers fail in every way; the reason goes into the status report
        text = str(error).strip().splitlines()
        return f"its self-test failed ({type(error).__name__}: {text[0] if text else ''})"


@functools.cache
def triton_unavailable(device: torch.device) -> str | None:
    """Why Triton's kernels cannot be tried on a device, or None if they can."""
    if device.type != "cuda":
        return f"it does not reach a {device.type} device"
    if importlib.util.find_spec("triton") is None:
        return "it is not installed (pip install triton; on Windows triton-windows)"
    if torch.version.hip is not None:
        architecture = torch.cuda.get_device_properties(device).gcnArchName
        reason = amd.unsupported(architecture)
        if reason is not None:
            return reason
    elif torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} has no bfloat16 tensor cores (compute capability 8.0 or newer is needed)"
    try:
        importlib.import_module("triton")
    except (ImportError, OSError, RuntimeError) as error:
        return f"it cannot be imported ({error})"
    if torch.version.hip is not None:
        return amd.too_old(torch.cuda.get_device_properties(device).gcnArchName, triton_version())
    return None


@functools.cache
def slow_int8(device: torch.device) -> str | None:
    """Why Triton's int8 products cannot be tried on a device, or would be slower there than 16-bit ones; None if neither."""
    reason = triton_unavailable(device)
    if reason is not None or device.type != "cuda" or torch.version.hip is not None:
        return reason
    if torch.cuda.get_device_capability(device)[0] == 10 and triton_version() < _INT8_ON_10:
        wanted = ".".join(map(str, _INT8_ON_10))
        return f"before Triton {wanted} its int8 products do not use this GPU's tensor cores of the fifth generation"
    return None


def _sage_unavailable(device: torch.device) -> str | None:
    """Why Triton's 8-bit attention cannot be tried on a device, or None if it can."""
    reason = triton_unavailable(device)
    if reason is None and device.type == "cuda" and torch.version.hip is not None:
        return amd.no_sage(torch.cuda.get_device_properties(device).gcnArchName)
    return reason


def triton_version() -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.import_module("triton").__version__.split("+")[0].split(".")[:3])


def _on_cpu(device: torch.device) -> str | None:
    return "a CPU computes the definition" if device.type in ("cpu", "meta") else None


def _kitchen_unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"its compiled kernels do not reach a {device.type} device"
    if importlib.util.find_spec("comfy_kitchen") is None:
        return "it is not installed"
    return importlib.import_module(".kitchen.norm", __package__).unavailable()


def eight_bit_format(device: torch.device) -> tuple[str, str]:
    """The format in which 8-bit attention multiplies with v on a device ("fp16", "int8" or "fp8"), and why."""
    reason = triton_unavailable(device)
    if reason is not None:
        return "fp16", f"the most exact, since Triton does not run: {reason}"
    if torch.version.hip is not None:
        return "fp16", "the others are not tried on this kind of GPU"
    sage = importlib.import_module(".triton.sage_attention", __package__)
    choice = sage.default_pv(torch.cuda.get_device_capability(device), triton_version())
    return choice[0] or "fp16", choice[2]

"""Which backend runs an operator: decided from declared constraints before the call, never by trying and failing.

The device's part of the decision (is the backend available, does it pass its self-test) is made once per device, the
tensors' part at each call. All backends of an operator compute the same function: one that computes another is never
chosen here."""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from . import self_test
from .backends import BACKENDS, Backend, Fixable
from .background import background_compiler


class Choice(NamedTuple):
    """The backend that runs an operator, and why each faster one does not."""

    backend: str
    rejected: dict[str, str]

    def __str__(self) -> str:
        return "; ".join([self.backend, *(f"not {name}: {reason}" for name, reason in self.rejected.items())])


class NoBackendError(RuntimeError):
    """No backend can run the request, or the demanded one cannot. `rejected` has the reason by backend, `reasons` all
    of them as a text."""

    def __init__(self, function: str, rejected: Mapping[str, str]):
        self.rejected = dict(rejected)
        self.reasons = "; ".join(f"{backend}: {reason}" for backend, reason in rejected.items())
        super().__init__(f"No backend can run {function}: {self.reasons}.")


@dataclass(frozen=True)
class Operator:
    """An operator, whose backends are the modules in `folder` that `BACKENDS` names."""

    function: str  # its name in each of these modules
    folder: str
    title: str = ""  # in the status report, which leaves out operators without one
    self_test: str = ""  # the function in the folder's `self_test_cases` that covers it; the folder's name if empty
    never: Mapping[str, str] = field(default_factory=dict)  # by backend, the reason that holds on every device

    def choose(self, device: torch.device, unsupported: Mapping[str, str] | None = None) -> Choice:
        """The backend for a request on `device`; `unsupported` says by backend why its tensors do not suit it.

        Raises NoBackendError if there is none, and torch.OutOfMemoryError if there is no memory for a self-test."""
        rejected, unsupported = {}, unsupported or {}
        for backend in BACKENDS:
            if backend.name in self.never:
                rejected[backend.name] = self.never[backend.name]
            elif backend.implements(self.folder):
                reason = self._unavailable(backend, device) or unsupported.get(backend.name)
                if reason is None:
                    return Choice(backend.name, rejected)
                rejected[backend.name] = reason
        raise NoBackendError(self.function, rejected)

    def _unavailable(self, backend: Backend, device: torch.device) -> str | None:
        demanded = _demanded.get()
        if demanded is None:
            reason = unavailable(backend, self.folder, self.self_test or self.folder, device)
        else:
            reason = None if backend.name == demanded else f"{demanded} was demanded"
        if reason is None and not hasattr(backend.load(self.folder), self.function):
            return f"it has no {self.function}"
        return reason

    def load(self, backend: str) -> Callable:
        """The implementation of a backend, whose module is imported at its first use."""
        row = next(row for row in BACKENDS if row.name == backend)
        return getattr(row.load(self.folder), self.function)

    def find(self, device: torch.device, unsupported: Mapping[str, str] | None = None) -> Callable:
        """The implementation of the backend that `choose` gives, with the same arguments and errors."""
        return self.load(self.choose(device, unsupported).backend)


_demanded: ContextVar[str | None] = ContextVar("turbodiffusion_demanded_backend", default=None)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block every operator runs on backend `name` or raises NoBackendError: for tests and benchmarks.
    "triton" then also takes CPU tensors, which need Triton's interpreter."""
    token = _demanded.set(name)
    try:
        yield
    finally:
        _demanded.reset(token)


@functools.cache
def unavailable(backend: Backend, folder: str, cases: str, device: torch.device) -> str | None:
    """Why a backend does not run a folder's operators on a device, or None if it does: what it declares, or what its
    self-test finds. Raises torch.OutOfMemoryError or MemoryError for a lack of memory: it says nothing about the
    backend, so nothing is remembered and the next call tests again."""
    try:
        reason = declared_unavailable(backend, folder, device)
        if reason is not None:
            return reason
        if device.type == "cuda":  # otherwise kernels of the self-test that are being compiled would be compiled twice
            background_compiler(device).wait()
        fault = self_test.fault(backend, folder, cases, device)
        return None if fault is None else Fixable(fault, "reinstall")
    except (torch.cuda.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        if "out of memory" in text[0].lower():  # Triton and MPS raise a RuntimeError for it
            raise torch.cuda.OutOfMemoryError(text[0]) from error
        # Compilers and drivers fail in every way; the reason goes into the status report.
        return Fixable(f"its self-test failed ({type(error).__name__}: {text[0]})", "reinstall")


def declared_unavailable(backend: Backend, folder: str, device: torch.device) -> str | None:
    """Why a backend declares that it cannot run a folder's operators on a device, or None. Runs no self-test."""
    reason = backend.unavailable(device)
    if reason is None and hasattr(module := backend.load(folder), "unavailable"):
        reason = module.unavailable(device)
    return reason


def unsupported_dtype(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why kernels made for 16-bit tensors cannot take a dtype, or None. On a CPU they run in Triton's interpreter,
    which takes any."""
    if dtype in (torch.float16, torch.bfloat16) or device.type == "cpu":
        return None
    return f"its kernels compute in float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"

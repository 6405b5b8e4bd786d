"""The self-test: compares a backend with the definitions on small ragged inputs, before it runs anything else on a
device."""

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import NamedTuple, TypeGuard

import torch

from .backends import REFERENCE, Backend

# bf16 inputs and output carry 2^-9 relative error each; a broken kernel is off by tens of per cent.
_TOLERANCE = 2e-2


class Case(NamedTuple):
    """One call of the self-test. Tensor arguments are float32 on the CPU. They are rounded to the dtype that the
    backend is tested in, except those named in `exact`, which are float32 in a bf16 model too. Integer results must be
    equal to the definition's, float results close."""

    function: str
    arguments: Mapping[str, object]
    exact: tuple[str, ...] = ()
    decode: Callable = lambda result: result  # gives the tensor that is compared from what the function returns


def fault(backend: Backend, folder: str, cases: str, device: torch.device) -> str | None:
    """What a backend computes wrong on a device, or None. `cases` is the function in the folder's `self_test_cases`
    that makes the calls. NaN is wrong too. Exceptions of the backend are not caught."""
    if backend.in_torch and device.type in ("cpu", "meta"):
        return None  # the tests compare it with the definition there
    module, reference = backend.load(folder), REFERENCE.load(folder)
    # Plain torch also runs on devices without bf16; the kernels are made for bf16.
    dtype = torch.float32 if backend.in_torch else torch.bfloat16
    for case in _cases_of(module, folder, cases, device):
        rounded = {name: _round(name, value, case, dtype) for name, value in case.arguments.items()}
        copies = copy.deepcopy(rounded)  # an operator may change an argument
        expected = case.decode(getattr(reference, case.function)(**copies))
        given = {name: _move(name, value, case, device, dtype) for name, value in rounded.items()}
        actual = case.decode(getattr(module, case.function)(**given)).cpu()
        if not expected.is_floating_point():
            wrong = (actual != expected).float().mean().item()
            if wrong:
                return f"its self-test of {case.function} differs in {wrong:.0%} of the values"
            continue
        error = ((actual.float() - expected.float()).norm() / expected.float().norm()).item()
        if not error < _TOLERANCE:
            return f"its self-test of {case.function} is off by {error:.1%}"
    return None


def launch_all(backend: Backend, folder: str, cases: str, device: torch.device) -> None:
    """Makes the calls of `fault` on a device on tensors without memory, for `launch.compiling_for`."""
    module = backend.load(folder)
    for case in _cases_of(module, folder, cases, device):
        meta = torch.device("meta")
        getattr(module, case.function)(
            **{name: _move(name, value, case, meta, torch.bfloat16) for name, value in case.arguments.items()}
        )


def _cases_of(module: ModuleType, folder: str, cases: str, device: torch.device) -> Iterator[Case]:
    """The cases whose function a backend's module has."""
    make = getattr(importlib.import_module(f".{folder}.self_test_cases", __package__), cases)
    for case in make(torch.Generator().manual_seed(0), device):
        if hasattr(module, case.function):
            yield case


def _is_rounded(value: object, name: str, case: Case) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and name not in case.exact


def _round(name: str, value: object, case: Case, dtype: torch.dtype) -> object:
    """The argument for the definition: float32 values that `dtype` can represent."""
    return value.to(dtype).float() if _is_rounded(value, name, case) else value


def _move(name: str, value: object, case: Case, device: torch.device, dtype: torch.dtype) -> object:
    """The argument for the backend, as a model that computes in `dtype` has it."""
    if isinstance(value, torch.dtype):
        return dtype
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if _is_rounded(value, name, case) else None)

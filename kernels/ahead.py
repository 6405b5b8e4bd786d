"""Compiles the kernels that the calls of a model will launch, in the background, before the first call."""

import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from . import self_test
from .attention import custom_ops as _attention
from .attention.pv_format import AUTOMATIC, fastest_format
from .backends import BACKENDS, Backend
from .background import background_compiler
from .dispatch import Operator, declared_unavailable
from .int8 import custom_ops as _int8
from .nf4 import custom_ops as _nf4
from .norm import custom_ops as _norm

_TRITON = next(backend for backend in BACKENDS if backend.name == "triton")
# Every operator, by the name of its function in the backends' modules.
BY_FUNCTION: Mapping[str, Operator] = MappingProxyType(
    {
        operator.function: operator
        for module in (_attention, _int8, _nf4, _norm)
        for value in vars(module).values()
        for operator in (value.values() if isinstance(value, dict) else [value])
        if isinstance(operator, Operator)
    }
)


class Call(NamedTuple):
    """A call of an operator: the name and the arguments of its function in the backends' modules, tensors on "meta"."""

    function: str
    arguments: Mapping[str, object]


def attention_call(device: torch.device, pv: str, arguments: Mapping[str, object]) -> Call:
    """The call of sparse-linear attention, with `pv` as `sparse_linear_attention` takes it. For "auto" it is the call
    in the format that the device uses if its kernels pass their self-test."""
    pv = fastest_format(device).name if pv == AUTOMATIC else pv
    return Call(_attention.operator_for(pv).function, {**arguments, **({"pv": pv} if pv else {})})


def compile_ahead(device: torch.device, calls: Iterable[Call]) -> None:
    """Begins to compile the kernels that these calls launch on a device, and those of their operators' self-tests.
    Returns at once. Does nothing on a device that Triton cannot run on."""
    if _TRITON.unavailable(device) is None:
        background_compiler(device).add(listed(_TRITON, device, calls))


def listed(backend: Backend, device: torch.device, calls: Iterable[Call]) -> list[Callable[[], object]]:
    """The argument of BackgroundCompiler.add: the calls of the self-tests, once each, then the given calls. Calls whose
    operators `backend` declares unavailable are left out."""
    tests: dict[tuple[str, str], Callable[[], object]] = {}
    runs: list[Callable[[], object]] = []
    for call in calls:
        operator = BY_FUNCTION[call.function]
        folder, cases = operator.folder, operator.self_test or operator.folder
        if declared_unavailable(backend, folder, device) is None:
            tests[folder, cases] = functools.partial(self_test.launch_all, backend, folder, cases, device)
            runs.append(functools.partial(getattr(backend.load(folder), call.function), **call.arguments))
    return [*tests.values(), *runs]

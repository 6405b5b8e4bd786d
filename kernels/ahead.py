"""Which kernels the calls of a model will launch, to be compiled in the background before the first of them."""

import functools
from collections.abc import Callable, Iterable, Mapping
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
_OPERATORS = {
    operator.function: operator
    for module in (_attention, _int8, _nf4, _norm)
    for value in vars(module).values()
    for operator in (value.values() if isinstance(value, dict) else [value])
    if isinstance(operator, Operator)
}


class Call(NamedTuple):
    """A call of an operator: the name and the arguments of its function in the backends' modules, tensors on "meta"."""

    function: str
    arguments: Mapping[str, object]


def attention_call(device: torch.device, pv: str, arguments: Mapping[str, object]) -> Call:
    """Of sparse-linear attention, with `pv` as `sparse_linear_attention` takes it; "auto" is the format that the device
    takes if its kernels pass their self-test."""
    pv = fastest_format(device).name if pv == AUTOMATIC else pv
    return Call(_attention.operator_for(pv).function, {**arguments, **({"pv": pv} if pv else {})})


def compile_ahead(device: torch.device, calls: Iterable[Call]) -> None:
    """Begins to compile the kernels that these calls launch on a device, those of their operators' self-tests
    included. Returns at once; where Triton is not tried, it does nothing."""
    if _TRITON.unavailable(device) is None:
        background_compiler(device).add(listed(_TRITON, device, calls))


def listed(backend: Backend, device: torch.device, calls: Iterable[Call]) -> list[Callable[[], object]]:
    """What BackgroundCompiler.add takes: the self-tests' calls, once each, and these calls."""
    tests: dict[tuple[str, str], Callable[[], object]] = {}
    runs: list[Callable[[], object]] = []
    for call in calls:
        operator = _OPERATORS[call.function]
        folder, cases = operator.folder, operator.self_test or operator.folder
        if declared_unavailable(backend, folder, device) is None:
            tests[folder, cases] = functools.partial(self_test.launch_all, backend, folder, cases, device)
            runs.append(functools.partial(getattr(backend.load(folder), call.function), **call.arguments))
    return [*tests.values(), *runs]

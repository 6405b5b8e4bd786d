"""The backends, fastest first. A backend implements an operator by a module of its name in the operator's folder, for
example `int8/triton` or `norm/comfy_kitchen.py`, that has a function of the operator's name and signature."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Literal, NamedTuple

import torch

from . import amd

_MIN_CAPABILITY = (8, 0)  # bf16 and int8 tensor cores (NVIDIA)


class Fixable(str):
    """A reason why a backend does not run that the user can remove by what `fix` says to do with its package."""

    fix: Literal["install", "upgrade", "reinstall"]

    def __new__(cls, reason: str, fix: Literal["install", "upgrade", "reinstall"]) -> "Fixable":
        self = super().__new__(cls, reason)
        self.fix = fix
        return self


class Backend(NamedTuple):
    """`unavailable` gives the reason why the backend cannot run on a device (`Fixable` where a change of its package
    helps), or None. A module of the backend may have a function `unavailable(device)` too, for what holds for that
    operator alone."""

    name: str
    module: str  # in each operator's folder
    unavailable: Callable[[torch.device], str | None]
    in_torch: bool = False  # plain torch: any dtype, nothing compiled

    def implements(self, folder: str) -> bool:
        """Whether the backend has a module for the operators of a folder, which is not imported for that."""
        return _has_module(folder, self.module)

    def load(self, folder: str) -> ModuleType:
        """The backend's module for the operators of a folder."""
        return importlib.import_module(f".{folder}.{self.module}", __package__)


@functools.cache
def _has_module(folder: str, module: str) -> bool:
    return importlib.util.find_spec(f".{folder}.{module}", __package__) is not None


def triton_unavailable(device: torch.device) -> str | None:
    """Why Triton's kernels cannot be tried on a device, or None if they can."""
    if device.type != "cuda":
        return f"it does not reach a {device.type} device"
    if importlib.util.find_spec("triton") is None:
        return Fixable("it is not installed (pip install triton; on Windows triton-windows)", "install")
    if torch.version.hip is not None:
        reason = amd.unsupported(amd.architecture_of(device))
        if reason is not None:
            return reason
    elif torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"{name} has no bfloat16 tensor cores (compute capability 8.0 or newer is needed)"
    try:
        importlib.import_module("triton")
    except (ImportError, OSError, RuntimeError) as error:
        return Fixable(f"it cannot be imported ({error})", "reinstall")
    if torch.version.hip is not None:
        reason = amd.too_old(amd.architecture_of(device), triton_version())
        return None if reason is None else Fixable(reason, "upgrade")
    return None


def triton_version() -> tuple[int, ...]:
    """The version of the installed Triton, three numbers. Raises ImportError without Triton."""
    return tuple(int(part) for part in importlib.import_module("triton").__version__.split("+")[0].split(".")[:3])


def _comfy_kitchen_unavailable(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"its compiled kernels do not reach a {device.type} device"
    return None if importlib.util.find_spec("comfy_kitchen") else "it is not installed"


def _dequantized_unavailable(device: torch.device) -> str | None:
    return "a CPU computes the definition" if device.type in ("cpu", "meta") else None


# The definitions: any device.
REFERENCE = Backend("torch", "reference", lambda device: None, in_torch=True)
# To add a backend, add a row and a module in the folder of each operator that it implements.
BACKENDS = (
    Backend("triton", "triton", triton_unavailable),
    Backend("comfy_kitchen", "comfy_kitchen", _comfy_kitchen_unavailable),
    # multiplies int8 weights in 16 bits, on a GPU that multiplies int8 no faster or has no kernel for it
    Backend("dequantized", "dequantized", _dequantized_unavailable),
    # the same function as the definition in a few large operations
    Backend("batched", "batched", lambda device: None, in_torch=True),
    REFERENCE,
)

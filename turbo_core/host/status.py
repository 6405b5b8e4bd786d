"""A report in plain text: what runs on this machine and why not the rest, and what the models did last."""

import importlib.metadata
import platform

import comfy.model_management
import torch
from comfyui_version import __version__ as comfyui_version

from ...kernels import OPERATORS, NoBackendError, eight_bit_format
from .base_model import TurboWAN

_GB = 1e9


def report() -> str:
    """The machine, the backend of each operator with its reasons, and every loaded model from this pack."""
    return "\n\n".join(["\n".join(_machine()), "\n".join(_operators()), "\n".join(_models())])


def _machine() -> list[str]:
    device = comfy.model_management.get_torch_device()
    free, total = (
        get(device) / _GB for get in (comfy.model_management.get_free_memory, comfy.model_management.get_total_memory)
    )
    lines = [
        f"ComfyUI {comfyui_version}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {_version('triton')}, comfy-kitchen {_version('comfy-kitchen')}",
        f"Device {comfy.model_management.get_torch_device_name(device)}: {free:.1f} of {total:.1f} GB free",
    ]
    if device.type != "cpu":
        cpu = torch.device("cpu")
        free, total = (
            get(cpu) / _GB for get in (comfy.model_management.get_free_memory, comfy.model_management.get_total_memory)
        )
        lines.append(f"Memory: {free:.1f} of {total:.1f} GB free")
    return lines


def _operators() -> list[str]:
    device = comfy.model_management.get_torch_device()
    lines = []
    for title, operator in OPERATORS.items():
        try:
            lines.append(f"  {title}: {operator.choose(device)}")
        except NoBackendError as error:
            lines.append(f"  {title}: none. {error}")
    pv, reason = eight_bit_format(device)
    return ["Operators", *lines, f"  8-bit attention multiplies with v in {pv}: {reason}"]


def _models() -> list[str]:
    models = [loaded.model.model for loaded in comfy.model_management.current_loaded_models if loaded.model is not None]
    lines = []
    for model in models:
        if isinstance(model, TurboWAN):
            calls = ", ".join(f"{name} {model.calls[name]}" for name in sorted(model.calls) if model.calls[name])
            lines.append(
                f"  {model.spec.describe()}, {str(model.get_dtype_inference()).removeprefix('torch.')}: {calls or 'not run'}"
            )
    return ["Models on the device, and the calls of their last run", *(lines or ["  none"])]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

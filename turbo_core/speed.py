"""One line for a user: are the fast kernels used on this device, why not, and the one thing to do about it."""

import importlib.util
import sys
from collections.abc import Mapping

import torch

from ..kernels import OPERATORS, Choice, NoBackendError, Operator

_ATTENTION, _INT8 = "sparse attention", "int8 linear"
_OTHER_GPUS = {"mps": "an Apple GPU", "xpu": "an Intel GPU"}
_BUY = "use an NVIDIA GPU of compute capability 8.0 or newer (RTX 30 series or newer)"


def speed_line(
    device: torch.device, started_with_cpu: bool = False, operators: Mapping[str, Operator] = OPERATORS
) -> str:
    """ "Fast: ..." if sparse attention runs in Triton kernels on `device`, else "Slow: ..." with the reason and the remedy.

    `started_with_cpu` says whether the user had ComfyUI use the CPU."""
    try:
        attention, int8 = (_choose(operators[title], device) for title in (_ATTENTION, _INT8))
    except torch.OutOfMemoryError:
        return (
            "Not known: the device had no free memory to test the kernels; unload the models and run this node again."
        )
    if attention is not None and attention.backend == "triton":
        return _fast(device, int8)
    sparse = "cannot run" if attention is None else "runs in plain torch"
    both = (
        "and int8 run in plain torch" if sparse == "runs in plain torch" else f"{sparse} and int8 runs in plain torch"
    )
    cause, remedy = _cause(device, started_with_cpu, (attention or Choice("", {})).rejected.get("triton", ""))
    return f"Slow: {cause}, so sparse attention {both}; {remedy}"


def _choose(operator: Operator, device: torch.device) -> Choice | None:
    try:
        return operator.choose(device)
    except NoBackendError:
        return None


def _fast(device: torch.device, int8: Choice | None) -> str:
    name = torch.cuda.get_device_name(device)
    if int8 is not None and int8.backend == "triton":
        return f"Fast: sparse attention and int8 run in Triton kernels on {name}."
    reason = "" if int8 is None else int8.rejected.get("triton", "")
    return (
        f"Fast: sparse attention runs in Triton kernels on {name}; int8 weights are multiplied in 16 bits ({reason}), "
        f"update Triton with: pip install --upgrade {_package()}"
    )


def _cause(device: torch.device, started_with_cpu: bool, reason: str) -> tuple[str, str]:
    """Why Triton does not run on a device, of which the kernels say `reason`; and what to do."""
    if device.type == "cpu":
        if started_with_cpu:
            return "ComfyUI was started with --cpu", "start it without --cpu if this machine has a GPU."
        return "this is a CPU", f"{_BUY}, and the torch build made for it."
    if device.type != "cuda":
        return f"Triton does not reach {_OTHER_GPUS.get(device.type, f'a {device.type} device')}", f"for speed {_BUY}."
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed", f"install it with: pip install {_package()}"
    if reason.startswith(("its self-test", "it cannot be imported")):
        return f"Triton does not work here ({reason})", f"reinstall it with: pip install --force-reinstall {_package()}"
    return f"the Triton kernels do not run on this GPU ({reason})", f"for speed {_BUY}."


def _package() -> str:
    return "triton-windows" if sys.platform == "win32" else "triton"

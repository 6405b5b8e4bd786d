"""One line for a user: whether the fast kernels are used on this device, and if not, the reason and the remedy."""

import sys
from collections.abc import Mapping

import torch

from ..kernels import OPERATORS, Choice, Fixable, NoBackendError, Operator

_ATTENTION, _INT8 = "sparse attention", "int8 linear"
_OTHER_GPUS = {"mps": "an Apple GPU", "xpu": "an Intel GPU"}
_BUY = "use an NVIDIA GPU of compute capability 8.0 or newer (RTX 30 series or newer)"
# For each fix of Triton: what is wrong, the verb, pip's option.
_FIXES = {
    "install": ("Triton is not installed", "install", ""),
    "upgrade": ("Triton is too old ({})", "update", "--upgrade "),
    "reinstall": ("Triton does not work here ({})", "reinstall", "--force-reinstall "),
}


def speed_line(
    device: torch.device, started_with_cpu: bool = False, operators: Mapping[str, Operator] = OPERATORS
) -> str:
    """ "Fast: ..." if sparse attention runs in Triton kernels on `device`, else "Slow: ..." with the reason and the
    remedy.

    `started_with_cpu` says whether the user had ComfyUI use the CPU."""
    try:
        attention, int8 = (_choose(operators[title], device) for title in (_ATTENTION, _INT8))
    except torch.OutOfMemoryError:
        return (
            "Not known: the device had no free memory to test the kernels; unload the models and run this node again."
        )
    if attention.backend == "triton":
        return _fast(device, int8)
    how = ["runs in plain torch" if choice.backend else "cannot run" for choice in (attention, int8)]
    both = "and int8 run in plain torch" if attention.backend and int8.backend else f"{how[0]} and int8 {how[1]}"
    cause, remedy = _cause(device, started_with_cpu, attention.rejected.get("triton", ""))
    return f"Slow: {cause}, so sparse attention {both}; {remedy}"


def _choose(operator: Operator, device: torch.device) -> Choice:
    """As `Operator.choose`; backend "" if none can run."""
    try:
        return operator.choose(device)
    except NoBackendError as error:
        return Choice("", error.rejected)


def _fast(device: torch.device, int8: Choice) -> str:
    name = torch.cuda.get_device_name(device)
    if int8.backend == "triton":
        return f"Fast: sparse attention and int8 run in Triton kernels on {name}."
    reason = int8.rejected.get("triton", "")
    remedy = f", {_fix(reason, 'Triton')}" if isinstance(reason, Fixable) else "."
    return (
        f"Fast: sparse attention runs in Triton kernels on {name}; int8 weights are multiplied in 16 bits "
        f"({reason}){remedy}"
    )


def _cause(device: torch.device, started_with_cpu: bool, reason: str) -> tuple[str, str]:
    """Why Triton does not run on a device, for which the kernels give `reason`; and the remedy."""
    if device.type == "cpu":
        if started_with_cpu:
            return "ComfyUI was started with --cpu", "start it without --cpu if this machine has a GPU."
        return "this is a CPU", f"{_BUY}, and the torch build made for it."
    if device.type != "cuda":
        return f"Triton does not reach {_OTHER_GPUS.get(device.type, f'a {device.type} device')}", f"for speed {_BUY}."
    if isinstance(reason, Fixable):
        return _FIXES[reason.fix][0].format(reason), _fix(reason, "it")
    return f"the Triton kernels do not run on this GPU ({reason})", f"for speed {_BUY}."


def _fix(reason: Fixable, what: str) -> str:
    _, verb, option = _FIXES[reason.fix]
    package = "triton-windows" if sys.platform == "win32" else "triton"
    return f"{verb} {what} with: pip install {option}{package}"

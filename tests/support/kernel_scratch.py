"""Peak memory of a step on the meta device as it is on a GPU: what operators return, and what the host code of their
Triton kernels allocates besides."""

from collections.abc import Iterable

import comfy.ldm.modules.attention
import comfy.ldm.wan.model
import torch
import triton
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode

from ...kernels import use_backend
from .allocations import PeakBytes


class KernelPeakBytes(PeakBytes):
    """PeakBytes that runs the pack's operators as their Triton backend does, without launching a kernel. `held` were
    there before: an operator that returns a view of one takes no memory."""

    def __init__(self, held: Iterable[torch.Tensor]):
        super().__init__()
        self._held = [tensor.untyped_storage() for tensor in held]  # kept, since the address is the key
        self._alive |= {storage._cdata for storage in self._held}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, name = function._schema.name.split("::")
        if namespace != "turbodiffusion":
            return super().__torch_dispatch__(function, types, args, kwargs)
        with self, use_backend("triton"):
            return OPDEFS[f"{namespace}::{name}"]._init_fn(*args, **(kwargs or {}))


def launch_nothing(monkeypatch) -> None:
    """Makes every launch of a Triton kernel do nothing, compiled or in the interpreter; dense attention allocates its
    output alone, as flash attention does."""
    from triton.runtime.interpreter import GridExecutor

    monkeypatch.setattr(GridExecutor, "__call__", lambda *args, **kwargs: None)
    monkeypatch.setattr(triton.JITFunction, "run", lambda *args, **kwargs: None)
    for module in (comfy.ldm.modules.attention, comfy.ldm.wan.model):
        monkeypatch.setattr(module, "optimized_attention", lambda q, k, v, heads, **_: torch.empty_like(q))


class FusedRMSNorm(TorchFunctionMode):
    """RMS norm as one kernel, as torch has it for CUDA since 2.9. On the meta device it is several operators."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return (
            torch.empty_like(args[0]) if function is torch.nn.functional.rms_norm else function(*args, **(kwargs or {}))
        )

"""Int8 linear layers in Triton. Imported only when a GPU tensor needs them."""

import torch

from ... import backends
from .linear import int8_linear, int8_matmul, int8_matmul_gate_residual, int8_matmul_gelu_quantize
from .quantize import quantize_block, quantize_group, quantize_row

__all__ = [
    "int8_linear",
    "int8_matmul",
    "int8_matmul_gate_residual",
    "int8_matmul_gelu_quantize",
    "quantize_block",
    "quantize_group",
    "quantize_row",
    "unavailable",
]
_FIRST_ON_10 = (3, 9, 0)  # the first Triton that compiles int8 products to UTCIMMA on compute capability 10.x


def unavailable(device: torch.device) -> str | None:
    """Why the int8 products would be slower than 16-bit ones on a device that Triton reaches, or None."""
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] != 10:
        return None
    if backends.triton_version() < _FIRST_ON_10:
        wanted = ".".join(map(str, _FIRST_ON_10))
        reason = f"before Triton {wanted} its int8 products do not use this GPU's tensor cores of the fifth generation"
        return backends.Fixable(reason, "upgrade")
    return None

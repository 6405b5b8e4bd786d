"""How a step of a loaded model will be computed, as far as its memory depends on it (`memory.step_bytes`)."""

from typing import Any

import torch

from ...kernels import sage_v_bytes
from ..checkpoint.layout import WanSpec
from ..checkpoint.variants import I2V, T2V
from ..memory import Activations, StepForm
from .quant import is_block_int8, takes_codes

# Conditions of ComfyUI's Wan models that add tokens to those of the latent.
ADDED_TOKENS = ("time_dim_concat", "context_latents")


def step_form(network: Any, spec: WanSpec, device: torch.device, lora: bool) -> StepForm | None:
    """The form of a step on a device; None for a network that the formula does not describe: one with ComfyUI's blocks,
    or with more than the blocks of T2V and I2V.

    The mode of the attention is not part of it: a node sets it by an object patch, which ComfyUI applies after it has
    reserved the memory. 8-bit attention takes the most, so it counts wherever its kernels can run."""
    if spec.variant not in (T2V, I2V) or not network.turbo:
        return None
    up, down = network.blocks[0].ffn[0], network.blocks[0].ffn[2]
    try:
        on_codes = takes_codes(device, up, down)
    except torch.cuda.OutOfMemoryError:  # of a self-test, before other models are moved out; float takes the most
        on_codes = False
    activations: Activations = "float" if not on_codes else "tiles" if is_block_int8(up.weight) else "channels"
    return StepForm(activations, sage_v_bytes(device), lora, bool(spec.camera), _has_rms_norm(device))


def _has_rms_norm(device: torch.device) -> bool:
    """Whether torch has one kernel for RMS norm on a device (for CUDA since 2.9); otherwise it is several operators in
    float32. torch has no public way to ask."""
    key = torch._C._dispatch_key_for_device(device.type)
    return hasattr(torch, "_fused_rms_norm") and torch._C._dispatch_has_kernel_for_dispatch_key(
        "aten::_fused_rms_norm", key
    )

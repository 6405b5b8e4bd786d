"""A LoRA on a model: a branch beside int8 and 4-bit linears, ComfyUI's own weight patches everywhere else."""

import dataclasses

import comfy.model_patcher
import torch
from comfy.weight_adapter.lora import LoRAAdapter

from .. import lora
from .guider import model_spec
from .nf4 import is_nf4
from .quant import is_block_int8

_NETWORK = "diffusion_model."


def with_lora(
    patcher: comfy.model_patcher.ModelPatcher, name: str, tensors: dict[str, torch.Tensor], strength: float
) -> tuple[comfy.model_patcher.ModelPatcher, lora.Match]:
    """A clone of a model from TurboDiffusionLoader with the LoRA file `name`, which holds `tensors`, at `strength`; and what of
    the file applied.

    An int8 or 4-bit linear gets the product strength * scale * up (down x) added to its own when it runs, so that small changes are
    not lost to rounding and the weight stays as it is. Everything else is patched as the stock LoRA nodes do. LoRAs stack;
    strength 0 changes nothing. Raises TurboError if nothing in the file belongs to the model, or not in its size."""
    model_spec(patcher)
    shapes = {key: tuple(value.shape) for key, value in patcher.model.diffusion_model.named_parameters()}
    found = lora.match(tensors, [key.removesuffix(".weight") for key in shapes if key.endswith(".weight")])
    if not found.layers:
        raise lora.nothing_matched(name, tensors)
    lora.check_shapes(name, found, shapes)
    clone = patcher.clone()
    if strength == 0:
        return clone, found
    patches = {f"{_NETWORK}{change.layer}.{change.kind}": ("diff", (change.value,)) for change in found.differences}
    for change in found.low_rank:
        key = f"{_NETWORK}{change.layer}"
        weight = patcher.get_model_object(f"{key}.weight")
        if is_block_int8(weight) or is_nf4(weight):
            down, up = change.down.flatten(1), change.up.flatten(1)  # some tools write a linear as a 1x1 convolution
            branch = dataclasses.replace(change, down=down, up=up, scale=change.scale * strength)
            clone.add_object_patch(f"{key}.branches", (*clone.get_model_object(f"{key}.branches"), branch))
        else:
            alpha = change.scale * change.down.shape[0]  # ComfyUI divides it by the rank
            patches[f"{key}.weight"] = LoRAAdapter(set(), (change.up, change.down, alpha, None, None, None))
    clone.add_patches(patches, strength)
    return clone, found

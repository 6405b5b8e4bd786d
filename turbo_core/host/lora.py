"""A LoRA on a model: a branch beside int8 linears, ComfyUI's own weight patches everywhere else."""

import comfy.model_patcher
import torch
from comfy.weight_adapter.lora import LoRAAdapter

from ..lora import match
from .guider import model_spec
from .quant import is_block_int8

_NETWORK = "diffusion_model."


def with_lora(
    patcher: comfy.model_patcher.ModelPatcher, tensors: dict[str, torch.Tensor], strength: float
) -> tuple[comfy.model_patcher.ModelPatcher, int]:
    """A clone of a model from TurboDiffusionLoader with a LoRA's `tensors` at `strength`, and how many layers it changed.

    An int8 linear gets the product strength * up (down x) added to its own when it runs, so that small changes are not lost
    to rounding and the weight stays as it is. Other layers are patched as the stock LoRA nodes do. LoRAs stack; strength 0
    changes nothing. Raises TurboError if no tensor matches the model."""
    model_spec(patcher)
    network = patcher.model.diffusion_model
    weights = {name: getattr(module, "weight", None) for name, module in network.named_modules()}
    weights = {name: weight for name, weight in weights.items() if weight is not None and weight.ndim == 2}
    matched = match(tensors, {name: tuple(weight.shape) for name, weight in weights.items()})
    clone = patcher.clone()
    if strength == 0:
        return clone, len(matched)
    patches = {}
    for low_rank in matched:
        key = f"{_NETWORK}{low_rank.layer}"
        if is_block_int8(weights[low_rank.layer]):
            branch = low_rank._replace(scale=low_rank.scale * strength)
            clone.add_object_patch(f"{key}.branches", (*clone.get_model_object(f"{key}.branches"), branch))
        else:
            rank = low_rank.down.shape[0]  # ComfyUI divides alpha by the rank
            patches[f"{key}.weight"] = LoRAAdapter(
                set(), (low_rank.up, low_rank.down, low_rank.scale * rank, None, None, None)
            )
    clone.add_patches(patches, strength)
    return clone, len(matched)

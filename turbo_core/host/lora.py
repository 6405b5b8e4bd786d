"""LoRAs on a model: side paths of its linears, ComfyUI's weight patches everywhere else, and the list of them."""

from typing import Any, NamedTuple

import comfy.model_patcher
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter.lora import LoRAAdapter

from .. import lora
from ..errors import TurboError, check_finite
from .guider import model_spec
from .side_paths import add_side_paths, takes_side_paths

_NETWORK = "diffusion_model."
_APPLIED = "turbodiffusion_loras"  # the attachment of a ModelPatcher with its AppliedLoras


class AppliedLora(NamedTuple):
    """A LoRA file on a model. `report` says how many of its layers change the model, and why others do not."""

    name: str
    strength: float
    report: str


def with_lora(
    patcher: comfy.model_patcher.ModelPatcher, name: str, tensors: dict[str, torch.Tensor], strength: float
) -> tuple[comfy.model_patcher.ModelPatcher, lora.Match]:
    """A clone of a model from TurboDiffusionLoader with the LoRA file `name`, which holds `tensors`, at `strength`; and
    what of the file applied.

    A linear gets the product strength * scale * up (down x) added to its own when it runs, so that no change is lost to
    the rounding of a weight, and weights stay as they are. Whole differences, and what changes a norm, a bias or a
    convolution, are patched as the stock LoRA nodes do. LoRAs stack; strength 0 changes nothing. Raises TurboError as
    `lora.match` and `lora.check_values`, for a strength that is NaN or infinite, and for a model of another loader."""
    check_finite("strength", strength, "1")
    model_spec(patcher)
    shapes = {key: tuple(value.shape) for key, value in patcher.model.diffusion_model.named_parameters()}
    found = lora.match(name, tensors, shapes)
    lora.check_values(name, tensors, found)
    clone = patcher.clone()
    clone.set_attachments(_APPLIED, (*applied_loras(patcher), AppliedLora(name, strength, found.report)))
    if strength == 0:
        return clone, found
    patches = {f"{_NETWORK}{change.layer}.{change.kind}": ("diff", (change.value,)) for change in found.differences}
    beside = []
    for change in found.low_rank:
        if takes_side_paths(patcher.get_model_object(f"{_NETWORK}{change.layer}")):
            beside.append(change)
        else:
            alpha = change.scale * change.down.shape[0]  # ComfyUI divides it by the rank
            adapter = LoRAAdapter(set(), (change.up, change.down, alpha, None, None, None))
            patches[f"{_NETWORK}{change.layer}.weight"] = adapter
    add_side_paths(clone, beside, strength)
    if patches:  # else the weights stay loaded as they are: ComfyUI loads them again after any call of add_patches
        clone.add_patches(patches, strength)
    return clone, found


def applied_loras(patcher: comfy.model_patcher.ModelPatcher) -> tuple[AppliedLora, ...]:
    """The LoRAs that `with_lora` applied to a model, in order."""
    return patcher.attachments.get(_APPLIED, ())


def lora_lines(patcher: comfy.model_patcher.ModelPatcher) -> list[str]:
    """A line of the status report for each of a model's LoRAs."""
    return [f"  LoRA {each.name} at strength {each.strength:g}: {each.report}" for each in applied_loras(patcher)]


def refuse_hooks_on_quantized(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Makes a model and its clones raise TurboError for a weight hook of the conditioning on a quantized weight, before
    a step runs. ComfyUI overwrites weights in place for hooks, which a quantized one does not allow."""
    patcher.add_callback_with_key(CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, "turbodiffusion", _refuse_hooks)


def _refuse_hooks(
    patcher: comfy.model_patcher.ModelPatcher, hooks: Any, target_dict: Any, model_options: Any, registered: Any
) -> None:
    keys = {key for patches in patcher.hook_patches.values() for key in patches}
    if any(isinstance(patcher.get_model_object(key), QuantizedTensor) for key in keys):
        raise TurboError(
            "LoRA hooks cannot change int8 or 4-bit weights: apply the LoRA to the model with TurboDiffusionLoRA, or "
            "load the "
            "model's bf16 file."
        )

"""LoRA hooks of conditioning, on weights that they cannot change."""

import comfy.model_patcher
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor

from ..errors import TurboError


def refuse_on_quantised(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Makes a model and its clones raise TurboError for a weight hook on a quantised weight, before a step runs: ComfyUI
    overwrites weights in place for hooks, which a quantised one does not allow."""
    patcher.add_callback_with_key(CallbacksMP.ON_REGISTER_ALL_HOOK_PATCHES, "turbodiffusion", _refuse)


def _refuse(patcher, hooks, target_dict, model_options, registered) -> None:
    keys = {key for patches in patcher.hook_patches.values() for key in patches}
    if any(isinstance(patcher.get_model_object(key), QuantizedTensor) for key in keys):
        raise TurboError(
            "LoRA hooks cannot change int8 or 4-bit weights: apply the LoRA to the model with TurboDiffusionLoRA, or load the "
            "model's bf16 file."
        )

"""Checks before ComfyUI's save nodes write a quantized model."""

from typing import Any

import comfy.model_patcher
import torch
from comfy.quant_ops import QuantizedTensor

from ..errors import TurboError


def with_save_check(patcher_class: type[comfy.model_patcher.ModelPatcher]) -> type[comfy.model_patcher.ModelPatcher]:
    """A subclass of a ModelPatcher class, which its clones share, that checks its network before ComfyUI's save nodes
    read it."""

    class CheckedPatcher(patcher_class):
        def model_state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
            """As ComfyUI's. Raises TurboError as `check_side_paths`, and for integer weights that ComfyUI would fetch
            while it writes the file: it makes each a torch Parameter that requires a gradient, which integers
            cannot."""
            check_side_paths(self.model.diffusion_model)
            if any(map(_is_fetched_integer, self.model.diffusion_model.modules())):
                raise TurboError(
                    "ComfyUI cannot save an int8 or 4-bit model that is not wholly on the device (dynamic VRAM, "
                    "offloading): write the "
                    "file, with a LoRA merged if there is one, with TurboDiffusionConvert."
                )
            return super().model_state_dict_for_saving(*args, **kwargs)

    return CheckedPatcher


def check_side_paths(network: torch.nn.Module) -> None:
    """Raises TurboError if a network's linears have side paths of a LoRA, which are not saved with the weights."""
    if any(getattr(layer, "side_paths", ()) for layer in network.modules()):
        raise TurboError(
            "A model cannot be saved with a LoRA of TurboDiffusionLoRA on it, which is no part of its weights: save it "
            "without the LoRA, or merge the LoRA into the file with TurboDiffusionConvert."
        )


def _is_fetched_integer(layer: torch.nn.Module) -> bool:
    """Whether a layer's weight has integer codes and was not put on the device when the model was loaded."""
    weight = getattr(layer, "weight", None)
    loaded = getattr(layer, "comfy_patched_weights", False)
    return isinstance(weight, QuantizedTensor) and not weight._qdata.is_floating_point() and not loaded

"""What ComfyUI's save nodes cannot write of a quantized model is refused in one sentence."""

import comfy.model_patcher
import torch
from comfy.quant_ops import QuantizedTensor

from ..errors import TurboError


def with_save_check(patcher_class: type[comfy.model_patcher.ModelPatcher]) -> type[comfy.model_patcher.ModelPatcher]:
    """A subclass of a ModelPatcher class, which its clones share, that checks its network before ComfyUI's save nodes read it."""

    class CheckedPatcher(patcher_class):
        def model_state_dict_for_saving(self, *args, **kwargs):
            """As ComfyUI's. Raises TurboError where `check_branches` does, and for weights in integers that ComfyUI would fetch
            while it writes the file: it puts each into a torch Parameter that requires a gradient, which integers cannot."""
            check_branches(self.model.diffusion_model)
            if any(map(_is_fetched_integer, self.model.diffusion_model.modules())):
                raise TurboError(
                    "ComfyUI cannot save an int8 or 4-bit model that is not wholly on the device (dynamic VRAM, offloading): write the "
                    "file, with a LoRA merged if there is one, with TurboDiffusionConvert."
                )
            return super().model_state_dict_for_saving(*args, **kwargs)

    return CheckedPatcher


def check_branches(network: torch.nn.Module) -> None:
    """Raises TurboError while a LoRA runs beside quantized weights of a network: they would be saved without it."""
    if any(getattr(layer, "branches", ()) for layer in network.modules()):
        raise TurboError(
            "A quantised model cannot be saved with a LoRA of TurboDiffusionLoRA on it: save it without the LoRA, or merge the "
            "LoRA into the file with TurboDiffusionConvert."
        )


def _is_fetched_integer(layer: torch.nn.Module) -> bool:
    """Whether a layer's weight has integer codes and was not put on the device when the model was loaded."""
    weight = getattr(layer, "weight", None)
    loaded = getattr(layer, "comfy_patched_weights", False)
    return isinstance(weight, QuantizedTensor) and not weight._qdata.is_floating_point() and not loaded

"""bitsandbytes' 4-bit weights as ComfyUI's quantized weights: a layout, the Linear that unpacks them, and stock LoRAs
on them.

The weight stays packed on disk, in memory, in VRAM and in transfer; a layer unpacks its weight when it runs. No weight
is packed again, which would round a LoRA away: LoRAs are added to the unpacked weight, or as side paths, at each
run."""

import dataclasses
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import torch
import torch.nn.functional as F
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout

from ...kernels import nf4_dequantize
from ..checkpoint.packed import STATE, Packed, read_state, write_state
from ..errors import TurboError
from .quantized_linear import has_layout, quantized_operations, register_format

LAYOUT = "TurboDiffusionNF4Layout"
FORMAT = "turbodiffusion_nf4"


class TurboDiffusionNF4Layout(QuantizedLayout):
    """Flat codes uint8 [ceil(N / 2)] of a weight with N elements, and its scales, as `checkpoint.packed` describes
    them."""

    @dataclasses.dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """`scale` is bitsandbytes' absmax; the nested tensors are None without double quantization."""

        quant_map: torch.Tensor
        nested_absmax: torch.Tensor | None
        nested_quant_map: torch.Tensor | None
        state: Packed

        def _tensor_fields(self) -> list[str]:
            nested = ["nested_absmax", "nested_quant_map"] if self.nested_absmax is not None else []
            return ["scale", "quant_map", *nested]

    @classmethod
    def quantize(cls, tensor: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, Params]:
        raise TurboError(
            "A 4-bit weight cannot be changed for good: use a LoRA on the loaded model, or the bf16 file of the model."
        )

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        return unpack(qdata, params, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Params) -> dict[str, torch.Tensor]:
        """Under bitsandbytes' names: a saved model has the tensors of the file that it was loaded from."""
        sides = {
            ".absmax": params.scale,
            ".quant_map": params.quant_map,
            ".nested_absmax": params.nested_absmax,
            ".nested_quant_map": params.nested_quant_map,
            f"{STATE}{params.state.kind}": write_state(params.state),
        }
        return {"": qdata, **{name: tensor for name, tensor in sides.items() if tensor is not None}}


register_format(FORMAT, TurboDiffusionNF4Layout, torch.uint8, set())


def is_nf4(weight: object) -> bool:
    """Whether a weight is a 4-bit one of bitsandbytes (NF4 or FP4)."""
    return has_layout(weight, LAYOUT)


def unpack(codes: torch.Tensor, params: TurboDiffusionNF4Layout.Params, dtype: torch.dtype) -> torch.Tensor:
    """The weight [N, K] in `dtype`."""
    state = params.state
    return nf4_dequantize(
        codes,
        params.scale,
        params.quant_map,
        params.nested_absmax,
        params.nested_quant_map,
        state.nested_offset,
        state.blocksize,
        state.nested_blocksize,
        *state.shape,
        dtype,
    )


def take_packed(state_dict: dict[str, torch.Tensor], weight: str, dtype: torch.dtype) -> QuantizedTensor | None:
    """Takes the 4-bit weight of that name and the tensors that belong to it out of a checked state dict; None if it is
    not 4-bit."""
    key = next((f"{weight}{STATE}{kind}" for kind in ("nf4", "fp4") if f"{weight}{STATE}{kind}" in state_dict), None)
    if key is None:
        return None
    state = read_state("The file", key, state_dict.pop(key))
    params = TurboDiffusionNF4Layout.Params(
        scale=state_dict.pop(f"{weight}.absmax"),
        orig_dtype=dtype,
        orig_shape=state.shape,
        quant_map=state_dict.pop(f"{weight}.quant_map"),
        nested_absmax=state_dict.pop(f"{weight}.nested_absmax", None),
        nested_quant_map=state_dict.pop(f"{weight}.nested_quant_map", None),
        state=state,
    )
    return QuantizedTensor(state_dict.pop(weight), LAYOUT, params)


def nf4_operations(compute_dtype: torch.dtype) -> Any:
    """ComfyUI `operations` whose Linear also takes 4-bit weights of bitsandbytes. Layers without one are ComfyUI's
    own."""
    base: Any = quantized_operations(compute_dtype, FORMAT, LAYOUT)
    base_linear: Any = base.Linear

    class NF4Operations(base):
        class Linear(base_linear):
            weight_function: list[Callable[..., torch.Tensor]]

            def take_weight(self, state_dict: dict[str, torch.Tensor], key: str) -> QuantizedTensor | None:
                return take_packed(state_dict, key, compute_dtype)

            def product(self, x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
                return F.linear(x, unpack(weight._qdata, weight._params, x.dtype), bias)

            def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
                """x [..., M, K] -> [..., M, N] in x's dtype."""
                if len(self.weight_function) > 1:
                    self.weight_function = _with_one_patch(self.weight_function)
                return super().forward(x, *args, **kwargs)

            def set_weight(
                self,
                weight: torch.Tensor,
                inplace_update: bool = False,
                seed: int | None = None,
                return_weight: bool = False,
                **kwargs: Any,
            ) -> torch.Tensor | None:
                """Called by ComfyUI to bake patches into a weight. A 4-bit weight stays as it is: `patch_at_run_time`
                has the patches applied when the layer runs. Raises TurboError where the baked weight is needed."""
                if not is_nf4(self.weight):
                    return super().set_weight(weight, inplace_update, seed, return_weight, **kwargs)
                if return_weight and any(map(_is_patch, self.weight_function)):
                    raise _not_saved()
                return self.weight if return_weight else None

    return NF4Operations


def patch_at_run_time(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Makes a model and its clones apply patches to 4-bit weights (the stock LoRA nodes') when a layer runs, exactly,
    instead of baking them into the weights, which would have to be packed again."""
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, FORMAT, _attach_patches)


def _attach_patches(
    patcher: comfy.model_patcher.ModelPatcher,
    device: torch.device,
    lowvram_model_memory: int,
    force_patch_weights: bool,
    full_load: bool,
) -> None:
    """Called after a model has been loaded: sets the patches of each 4-bit weight as the function that ComfyUI calls
    when it fetches the weight."""
    for name, module in patcher.model.named_modules():
        key = f"{name}.weight"
        if key not in patcher.patches or not is_nf4(getattr(module, "weight", None)):
            continue
        if force_patch_weights:  # only for saving the model
            raise _not_saved()
        # With this function dynamic VRAM would patch the weight once and pack it again.
        module.weight_lowvram_function = None
        patch = comfy.model_patcher.LowVramPatch(key, patcher.patches)
        module.weight_function = [patch, *(f for f in module.weight_function if not _is_patch(f))]


def _with_one_patch(functions: list[Callable[..., torch.Tensor]]) -> list[Callable[..., torch.Tensor]]:
    """Without repeated patches: ComfyUI's partial unloading adds the patch of a weight once more."""
    first = next((f for f in functions if _is_patch(f)), None)
    return [f for f in functions if f is first or not _is_patch(f)]


def _is_patch(function: object) -> bool:
    return isinstance(function, comfy.model_patcher.LowVramPatch)


def _not_saved() -> TurboError:
    return TurboError(
        "A 4-bit model cannot be saved with a LoRA in it: save it without the LoRA, or merge the LoRA into the bf16 "
        "file of the "
        "model with TurboDiffusionConvert."
    )

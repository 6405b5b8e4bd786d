"""bitsandbytes' 4-bit weights as ComfyUI knows quantised weights: a layout, the linear that runs it, and LoRAs on it.

The weight stays packed on disk, in memory, in VRAM and in transfer; a layer unpacks its own when it runs. Nothing is ever packed
again: that would round a LoRA away, so LoRAs are added to the unpacked weight, or beside it, each time."""

import dataclasses

import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout, register_layout_class

from ...kernels import nf4_dequantize
from ..checkpoint.packed import STATE, Packed, read_state, write_state
from ..errors import TurboError
from ..lora import LowRank
from .branches import add_branches
from .features import is_cast, is_streamed

LAYOUT = "TurboDiffusionNF4Layout"
FORMAT = "turbodiffusion_nf4"


class TurboDiffusionNF4Layout(QuantizedLayout):
    """Flat codes uint8 [ceil(N / 2)] of a weight with N elements, and its scales, as `checkpoint.packed` describes them."""

    @dataclasses.dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """`scale` is bitsandbytes' absmax; the nested tensors are None without double quantisation."""

        quant_map: torch.Tensor
        nested_absmax: torch.Tensor | None
        nested_quant_map: torch.Tensor | None
        state: Packed

        def _tensor_fields(self) -> list[str]:
            nested = ["nested_absmax", "nested_quant_map"] if self.nested_absmax is not None else []
            return ["scale", "quant_map", *nested]

    @classmethod
    def quantize(cls, tensor, **kwargs):
        raise TurboError(
            "A 4-bit weight cannot be changed for good: use a LoRA on the loaded model, or the bf16 file of the model."
        )

    @classmethod
    def dequantize(cls, qdata, params):
        return unpack(qdata, params, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor):
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata, params):
        """In bitsandbytes' names, so that a saved model is a file as it was loaded."""
        sides = {
            ".absmax": params.scale,
            ".quant_map": params.quant_map,
            ".nested_absmax": params.nested_absmax,
            ".nested_quant_map": params.nested_quant_map,
            f"{STATE}{params.state.kind}": write_state(params.state),
        }
        return {"": qdata, **{name: tensor for name, tensor in sides.items() if tensor is not None}}


register_layout_class(LAYOUT, TurboDiffusionNF4Layout)
# Without `quantize_input: False` ComfyUI would quantise activations by this layout, which is one for weights.
QUANT_ALGOS.setdefault(
    FORMAT, {"storage_t": torch.uint8, "parameters": set(), "comfy_tensor_layout": LAYOUT, "quantize_input": False}
)


def is_nf4(weight) -> bool:
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == LAYOUT


def unpack(codes: torch.Tensor, params: TurboDiffusionNF4Layout.Params, dtype: torch.dtype) -> torch.Tensor:
    """The weight in `dtype`."""
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
    """Takes the 4-bit weight of that name out of a checked state dict, with all that belongs to it; None if it is no such weight."""
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


def nf4_operations(compute_dtype: torch.dtype):
    """ComfyUI `operations` whose Linear also takes 4-bit weights of bitsandbytes. Layers without one are ComfyUI's own."""
    base = comfy.ops.mixed_precision_ops({}, compute_dtype)

    class NF4Operations(base):
        class Linear(base.Linear):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.branches: tuple[LowRank, ...] = ()  # of run-time LoRAs, as on int8 linears

            def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
                weight = take_packed(state_dict, prefix + "weight", compute_dtype)
                if weight is None:
                    return super()._load_from_state_dict(
                        state_dict, prefix, local_metadata, strict, missing, unexpected, errors
                    )
                self.quant_format, self.layout_type = FORMAT, LAYOUT
                self.weight = torch.nn.Parameter(weight, requires_grad=False)
                torch.nn.Module._load_from_state_dict(
                    self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
                )
                missing.remove(prefix + "weight")

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                tensors = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
                if is_nf4(self.weight):  # bitsandbytes' own tensors say what it is
                    del tensors[f"{prefix}comfy_quant"]
                return tensors

            def forward(self, x, *args, **kwargs):
                if len(self.weight_function) > 1:
                    self.weight_function = _without_doubles(self.weight_function)
                weight = self.weight
                resident = (
                    is_nf4(weight)
                    and weight.device == x.device
                    and (self.bias is None or self.bias.dtype == x.dtype)
                    and not self.weight_function
                    and not self.bias_function
                    and not is_streamed(self)
                    and not is_cast(self)
                )
                if (
                    not resident
                ):  # offloaded, patched, dynamic or of another type: ComfyUI fetches the weight and calls `_forward`
                    return super().forward(x, *args, **kwargs)
                comfy.ops.run_every_op()
                return self._forward(x, weight, self.bias)

            def _forward(self, x, weight, bias):
                if is_nf4(weight):
                    weight = unpack(weight._qdata, weight._params, x.dtype)
                return add_branches(super()._forward(x, weight, bias), x, self.branches)

            def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **kwargs):
                """ComfyUI bakes patches into a weight by this. A 4-bit weight stays as it is: `patch_at_run_time` has the patches
                applied when the layer runs. Raises TurboError where that cannot stand in for baking."""
                if not is_nf4(self.weight):
                    return super().set_weight(weight, inplace_update, seed, return_weight, **kwargs)
                if inplace_update:
                    raise TurboError(
                        "LoRA hooks cannot change 4-bit weights: apply the LoRA to the model, with TurboDiffusionLoRA or "
                        "LoraLoaderModelOnly."
                    )
                if return_weight and any(map(_is_patch, self.weight_function)):
                    raise _not_saved()
                return self.weight if return_weight else None

    return NF4Operations


def patch_at_run_time(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Makes a model and its clones apply patches to 4-bit weights (the stock LoRA nodes') when a layer runs, exactly, instead of
    baking them into the weights, which would have to be packed again."""
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, FORMAT, _attach_patches)


def _attach_patches(patcher, device, lowvram_model_memory, force_patch_weights, full_load) -> None:
    """After a model has been loaded: the patches of each 4-bit weight as the function that ComfyUI calls when it fetches it."""
    for name, module in patcher.model.named_modules():
        key = f"{name}.weight"
        if key not in patcher.patches or not is_nf4(getattr(module, "weight", None)):
            continue
        if force_patch_weights:  # asked for only to save the model
            raise _not_saved()
        # Dynamic VRAM would patch the weight once and pack it again by this one.
        module.weight_lowvram_function = None
        patch = comfy.model_patcher.LowVramPatch(key, patcher.patches)
        module.weight_function = [patch, *(f for f in module.weight_function if not _is_patch(f))]


def _without_doubles(functions: list) -> list:
    """Partial unloading adds the patch that is there already."""
    first = next((f for f in functions if _is_patch(f)), None)
    return [f for f in functions if f is first or not _is_patch(f)]


def _is_patch(function) -> bool:
    return isinstance(function, comfy.model_patcher.LowVramPatch)


def _not_saved() -> TurboError:
    return TurboError(
        "A 4-bit model cannot be saved with a LoRA in it: save it without the LoRA, or merge the LoRA into the bf16 file of the "
        "model with TurboDiffusionConvert."
    )

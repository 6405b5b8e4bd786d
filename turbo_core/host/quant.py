"""TurboDiffusion's int8 weights as ComfyUI's quantized weights: a layout, and the Linear that multiplies in int8.

The weight is a parameter that holds a QuantizedTensor, which ComfyUI's offload, prefetch, pinning, dynamic VRAM and
LoRA support; it stays int8 on disk, in memory, in VRAM and in transfer.

ComfyUI's own int8 weights, with a scale for each output channel, are multiplied by ComfyUI's Linear where they stand
alone, and in a block's fused path like TurboDiffusion's."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.model_management
import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout

from ...kernels import (
    TILE,
    dequantize_block,
    int8_linear,
    int8_matmul,
    int8_quantize,
    multiplies_codes,
    quantize_block,
)
from .features import is_cast, is_streamed, multiplies_as_it_is
from .quantized_linear import has_layout, quantized_operations, register_format

LAYOUT = "TurboDiffusionBlockINT8Layout"
CHANNEL_LAYOUT = "TensorWiseINT8Layout"  # ComfyUI's format int8_tensorwise, our converter's int8_rowwise
FORMAT = "turbodiffusion_int8_block128"
assert FORMAT.endswith(f"block{TILE}")  # saved files carry the name
# How activations are quantized: with a scale for 128 channels of a token, or, as upstream, of 128 tokens.
ACTIVATIONS = {"fine": "group", "upstream": "block"}


class TurboDiffusionBlockINT8Layout(QuantizedLayout):
    """int8 codes [N, K] with one float32 scale per 128x128 tile."""

    @dataclasses.dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """`scale` float32 [ceil(N/128), ceil(K/128)]."""

    @classmethod
    def quantize(
        cls,
        tensor: torch.Tensor,
        scale: object = None,
        stochastic_rounding: int = 0,
        inplace_ops: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, Params]:
        """Quantizes a float weight. `scale` is always recomputed; a non-zero `stochastic_rounding` is the seed of a
        rounding that keeps small changes (a LoRA's) on average. ComfyUI passes the other arguments."""
        codes, scales = quantize_block(tensor)
        if stochastic_rounding:
            codes = _round_stochastically(tensor, codes, scales, stochastic_rounding)
        return codes, cls.Params(scale=scales, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Params) -> torch.Tensor:
        return dequantize_block(qdata, params.scale, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Params) -> dict[str, torch.Tensor]:
        return {"": qdata, "_scale": params.scale}


def _round_stochastically(tensor: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator(tensor.device).manual_seed(seed)
    steps = dequantize_block(torch.ones_like(codes), scales, torch.float32)
    noise = torch.rand(tensor.shape, generator=generator, device=tensor.device)
    return (tensor.float() / steps + noise).floor_().clamp_(-128, 127).to(torch.int8)


register_format(FORMAT, TurboDiffusionBlockINT8Layout, torch.int8, {"weight_scale"})


def is_block_int8(weight: object) -> bool:
    """Whether a weight is block-scaled int8."""
    return has_layout(weight, LAYOUT)


def is_channel_int8(weight: Any) -> bool:
    """Whether a weight is ComfyUI's int8 [N, K] with a scale for each output channel, or one for all, not rotated."""
    if not has_layout(weight, CHANNEL_LAYOUT):
        return False
    params = weight._params
    # Optional: fields of comfy_kitchen's layout, not in every version.
    changed = getattr(params, "convrot", False) or getattr(params, "transposed", False)
    return not changed and params.scale.numel() in (1, weight.shape[0])


def _scales(weight: QuantizedTensor) -> torch.Tensor:
    """The scales of a weight as the operators take them: by tile [N/128, K/128], by channel [N]."""
    scale = weight._params.scale
    return scale if is_block_int8(weight) else scale.float().reshape(-1).expand(weight.shape[0])


class Quantized(NamedTuple):
    """An activation [B, M, K] as the input or output of int8 linears: int8 codes and their float32 scales. Not a
    QuantizedTensor, which torch.compile cannot make inside a graph. Only a layer that `takes_codes` may be given one,
    and one with side paths only with `values`."""

    codes: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype  # of the values that were quantized, and of a layer's output
    values: torch.Tensor | None = None  # the activation itself, for side paths


def takes_codes(device: torch.device, *layers: Any) -> bool:
    """Whether all layers are linears that multiply codes as they are, so that operators may be fused around them.

    Not where ComfyUI changes the weight on its way to the device (a stock LoRA on an offloaded weight, hooks), where it
    hands out the weight in float (dynamic VRAM on a CPU), where a node has replaced the layer's forward or hooked it,
    or on a device that multiplies int8 no faster than float."""
    # A loop and `len` because torch.compile breaks the graph at a generator whose tuple is tested for truth.
    for layer in layers:
        weight = getattr(layer, "weight", None)
        if (
            not (is_block_int8(weight) or (is_channel_int8(weight) and multiplies_as_it_is(layer)))
            or not hasattr(layer, "multiply")
            or len(layer.weight_function) + len(layer.bias_function) > 0
            or is_cast(layer)
            or (is_streamed(layer) and comfy.model_management.is_device_cpu(device))
            or is_replaced(layer)
        ):
            return False
    return multiplies_codes(device)


def is_replaced(module: torch.nn.Module) -> bool:
    """Whether a node has replaced the module's forward, or hooked it: its inputs and outputs must then be those of
    ComfyUI."""
    return "forward" in module.__dict__ or len(module._forward_hooks) + len(module._forward_pre_hooks) > 0


def block_int8_operations(
    compute_dtype: torch.dtype, quant_config: dict[str, Any] | None = None, activations: str = "fine"
) -> Any:
    """ComfyUI `operations` whose Linear also takes block-scaled int8 weights and, where that is faster, multiplies in
    int8, with activations as a key of ACTIVATIONS says.

    Layers without such a weight, stock quantization formats included, are ComfyUI's own; one with a scale for each
    channel also takes a Quantized."""
    base: Any = quantized_operations(compute_dtype, FORMAT, LAYOUT, quant_config)
    base_linear: Any = base.Linear

    class BlockInt8Operations(base):
        class Linear(base_linear):
            @property
            def activation(self) -> str:
                """How the layer's input is quantized: "group", "block" or "row"."""
                return "row" if is_channel_int8(self.weight) else ACTIVATIONS[activations]

            def take_weight(self, state_dict: dict[str, torch.Tensor], key: str) -> QuantizedTensor | None:
                codes = state_dict.get(key)
                if (
                    codes is None
                    or codes.dtype != torch.int8
                    or f"{key.removesuffix('weight')}comfy_quant" in state_dict
                ):
                    return None
                params = TurboDiffusionBlockINT8Layout.Params(
                    scale=state_dict.pop(f"{key}_scale"), orig_dtype=compute_dtype, orig_shape=tuple(codes.shape)
                )
                return QuantizedTensor(state_dict.pop(key), LAYOUT, params)

            @property
            def weight_scale(self) -> torch.Tensor:
                """An attribute, because ComfyUI's merge nodes read every key of the state dict as one of its layer."""
                if not is_block_int8(self.weight):
                    raise AttributeError("weight_scale")
                return self.weight._params.scale

            def forward(self, x: torch.Tensor | Quantized, *args: Any, **kwargs: Any) -> torch.Tensor:
                """x [..., M, K] in float, or a Quantized if the layer `takes_codes` -> [..., M, N] in x's dtype."""
                if isinstance(x, Quantized):
                    return self.multiply(int8_matmul, x, out_dtype=x.dtype)
                return super().forward(x, *args, **kwargs)

            def product(self, x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
                return int8_linear(x, weight._qdata, weight._params.scale, bias, self.activation)

            def quantize(self, x: torch.Tensor) -> Quantized:
                """An activation [B, M, K], quantized as this layer takes it."""
                codes, scales = int8_quantize(x, self.activation)
                return Quantized(codes, scales, x.dtype, x)

            def multiply(self, operator: Callable[..., Any], x: Quantized, **options: Any) -> Any:
                """`operator` (one of `kernels.int8_matmul...`) on x and this layer, which must `take_codes`."""
                comfy.ops.run_every_op()
                with self.quantized_weight(x.codes.device, x.dtype) as (weight, bias):
                    return operator(x.codes, x.scales, weight._qdata, _scales(weight), bias, **options)

    return BlockInt8Operations

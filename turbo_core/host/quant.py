"""TurboDiffusion's int8 weights as ComfyUI knows quantised weights: a layout, and the linear that runs it.

The weight is a parameter holding a QuantizedTensor, so ComfyUI's own offload, prefetch, pinning, dynamic VRAM and LoRA see
it; it stays int8 on disk, in memory, in VRAM and in transfer."""

import dataclasses
from typing import NamedTuple

import comfy.model_management
import comfy.ops
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout, register_layout_class

from ...kernels import TILE, dequantize_block, int8_linear, int8_matmul, multiplies_codes, quantize_block
from ..lora import LowRank
from .branches import add_branches
from .features import fetched, is_cast, is_streamed

LAYOUT = "TurboDiffusionBlockINT8Layout"
FORMAT = "turbodiffusion_int8_block128"
assert FORMAT.endswith(f"block{TILE}")  # saved files carry the name


class TurboDiffusionBlockINT8Layout(QuantizedLayout):
    """int8 codes [N, K] with one float32 scale per 128x128 tile."""

    @dataclasses.dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """`scale` float32 [ceil(N/128), ceil(K/128)]."""

    @classmethod
    def quantize(cls, tensor, scale=None, stochastic_rounding=0, inplace_ops=False, **kwargs):
        """Quantises a float weight. `scale` is always recomputed; a non-zero `stochastic_rounding` is the seed of a rounding
        that keeps small changes (a LoRA's) on average. ComfyUI passes the other arguments."""
        codes, scales = quantize_block(tensor)
        if stochastic_rounding:
            codes = _round_stochastically(tensor, codes, scales, stochastic_rounding)
        return codes, cls.Params(scale=scales, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))

    @classmethod
    def dequantize(cls, qdata, params):
        return dequantize_block(qdata, params.scale, params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor):
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata, params):
        return {"": qdata, "_scale": params.scale}


def _round_stochastically(tensor: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator(tensor.device).manual_seed(seed)
    steps = dequantize_block(torch.ones_like(codes), scales, torch.float32)
    noise = torch.rand(tensor.shape, generator=generator, device=tensor.device)
    return (tensor.float() / steps + noise).floor_().clamp_(-128, 127).to(torch.int8)


register_layout_class(LAYOUT, TurboDiffusionBlockINT8Layout)
# Without `quantize_input: False` ComfyUI would quantise activations by this layout, which is one for weights.
QUANT_ALGOS.setdefault(
    FORMAT,
    {"storage_t": torch.int8, "parameters": {"weight_scale"}, "comfy_tensor_layout": LAYOUT, "quantize_input": False},
)


def is_block_int8(weight) -> bool:
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == LAYOUT


class Quantized(NamedTuple):
    """An activation [B, M, K] that several int8 linears read, or that one leaves for the next: int8 codes and float32 scales
    by block. Not a QuantizedTensor, which torch.compile cannot make inside a graph. Only a layer that `takes_codes` may be
    given one."""

    codes: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype  # of the values that were quantised, and of what a layer makes of them


def takes_codes(device: torch.device, *layers: torch.nn.Module) -> bool:
    """Whether all layers are linears that multiply codes as they are, so that operators may be fused around them.

    Not with a LoRA branch, which reads the activation in float, nor where ComfyUI changes the weight on its way to the device
    (a LoRA on an offloaded weight, hooks), where it hands out the weight in float (dynamic VRAM on a CPU), where a node has
    replaced the layer's forward or hooked it, or on a device that multiplies int8 no faster than float."""
    # A loop and `len` because torch.compile breaks the graph at a generator whose tuple is tested for truth.
    for layer in layers:
        if (
            not is_block_int8(getattr(layer, "weight", None))
            or len(layer.branches) + len(layer.weight_function) + len(layer.bias_function) > 0
            or is_cast(layer)
            or (is_streamed(layer) and comfy.model_management.is_device_cpu(device))
            or is_replaced(layer)
        ):
            return False
    return multiplies_codes(device)


def is_replaced(module: torch.nn.Module) -> bool:
    """Whether a node has put a forward of its own on the module, or hooks, which must see what the module takes and gives."""
    return "forward" in module.__dict__ or len(module._forward_hooks) + len(module._forward_pre_hooks) > 0


def block_int8_operations(compute_dtype: torch.dtype, quant_config: dict | None = None):
    """ComfyUI `operations` whose Linear also takes block-scaled int8 weights and, where that is faster, multiplies in int8.

    Layers without such a weight, stock quantisation formats included, are ComfyUI's own."""
    base = comfy.ops.mixed_precision_ops(quant_config or {}, compute_dtype)

    class BlockInt8Operations(base):
        class Linear(base.Linear):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                # Low-rank branches of run-time LoRAs. An attribute of plain tensors, which nodes change per clone by object
                # patch: the int8 weight is neither dequantised nor requantised for them.
                self.branches: tuple[LowRank, ...] = ()

            def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
                codes = state_dict.get(prefix + "weight")
                if codes is None or codes.dtype != torch.int8 or prefix + "comfy_quant" in state_dict:
                    return super()._load_from_state_dict(
                        state_dict, prefix, local_metadata, strict, missing, unexpected, errors
                    )
                del state_dict[prefix + "weight"]
                params = TurboDiffusionBlockINT8Layout.Params(
                    scale=state_dict.pop(prefix + "weight_scale"),
                    orig_dtype=compute_dtype,
                    orig_shape=tuple(codes.shape),
                )
                self.quant_format, self.layout_type = FORMAT, LAYOUT
                self.weight = torch.nn.Parameter(QuantizedTensor(codes, LAYOUT, params), requires_grad=False)
                torch.nn.Module._load_from_state_dict(
                    self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors
                )
                missing.remove(prefix + "weight")

            def state_dict(self, *args, destination=None, prefix="", **kwargs):
                tensors = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
                if is_block_int8(
                    getattr(self, "weight", None)
                ):  # as in the files it is loaded from: with this mark none is ours
                    del tensors[f"{prefix}comfy_quant"]
                return tensors

            @property
            def weight_scale(self) -> torch.Tensor:
                """An attribute because ComfyUI's merge nodes read every key of the state dict as one of its layer."""
                if not is_block_int8(self.weight):
                    raise AttributeError("weight_scale")
                return self.weight._params.scale

            def _is_resident(self, device: torch.device) -> bool:
                """Whether the weight is there as it is; if not, ComfyUI fetches it (offloaded, patched or dynamic)."""
                return (
                    is_block_int8(self.weight)
                    and self.weight.device == device
                    and not self.weight_function
                    and not self.bias_function
                    and not is_streamed(self)
                    and not is_cast(self)
                )

            def forward(self, x, *args, **kwargs):
                """x [..., M, K] in float, or a Quantized if the layer `takes_codes` -> [..., M, N] in x's dtype."""
                if isinstance(x, Quantized):
                    return self.multiply(int8_matmul, x, out_dtype=x.dtype)
                if not self._is_resident(x.device):
                    return super().forward(x, *args, **kwargs)
                comfy.ops.run_every_op()
                return self._forward(x, self.weight, self.bias)

            def _forward(self, x, weight, bias):
                if is_block_int8(weight):
                    y = int8_linear(x, weight._qdata, weight._params.scale, bias)
                else:
                    y = super()._forward(x, weight, bias)
                return add_branches(y, x, self.branches)

            def multiply(self, operator, x: Quantized, **options):
                """`operator` (one of `kernels.int8_matmul...`) on x and this layer, which must `take_codes`; its weight is
                fetched as ComfyUI fetches the weight of a layer that it runs."""
                comfy.ops.run_every_op()
                if self._is_resident(x.codes.device):
                    weight = self.weight
                    return operator(x.codes, x.scales, weight._qdata, weight._params.scale, self.bias, **options)
                with fetched(
                    self,
                    dtype=self.weight.dtype,
                    device=x.codes.device,
                    bias_dtype=x.dtype,
                    compute_dtype=x.dtype,
                    want_requant=True,
                ) as (weight, bias):
                    return operator(x.codes, x.scales, weight._qdata, weight._params.scale, bias, **options)

    return BlockInt8Operations

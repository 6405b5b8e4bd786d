"""TurboDiffusion's int8 weights as ComfyUI knows quantised weights: a layout, and the linear that runs it.

The weight is a parameter holding a QuantizedTensor, so ComfyUI's own offload, prefetch, pinning, dynamic VRAM and LoRA see
it; it stays int8 on disk, in memory, in VRAM and in transfer."""

import dataclasses

import comfy.ops
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout, register_layout_class

from ...kernels import dequantize_block, int8_linear, quantize_block
from ..lora import LowRank
from .branches import add_branches

LAYOUT = "TurboDiffusionBlockINT8Layout"
FORMAT = "turbodiffusion_int8_block128"


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


def block_int8_operations(compute_dtype: torch.dtype, quant_config: dict | None = None):
    """ComfyUI `operations` whose Linear also takes block-scaled int8 weights and multiplies in int8.

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

            def forward(self, x, *args, **kwargs):
                weight = self.weight
                resident = (
                    is_block_int8(weight)
                    and weight.device == x.device
                    and not self.weight_function
                    and not self.bias_function
                    and not hasattr(self, "_v")
                    and not getattr(self, "comfy_force_cast_weights", False)
                )
                if not resident:  # offloaded, patched or dynamic: ComfyUI fetches the weight and calls `_forward`
                    return super().forward(x, *args, **kwargs)
                comfy.ops.run_every_op()
                return self._forward(x, weight, self.bias)

            def _forward(self, x, weight, bias):
                if is_block_int8(weight):
                    y = int8_linear(x, weight._qdata, weight._params.scale, bias)
                else:
                    y = super()._forward(x, weight, bias)
                return add_branches(y, x, self.branches)

    return BlockInt8Operations

"""The Linear of all quantized formats: loading, saving, and where the weight is.

A format (quant.py, nf4.py) subclasses it with its layout, the way to take its tensors from a state dict, and its
product."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor
from comfy_kitchen.tensor import QuantizedLayout, register_layout_class

from .features import fetched, is_cast, is_streamed


def register_format(name: str, layout: type[QuantizedLayout], storage: torch.dtype, parameters: set[str]) -> None:
    """Makes a weight format known to ComfyUI: its name, its layout, the dtype of its codes and the tensors beside
    them."""
    register_layout_class(layout.__name__, layout)
    # Without `quantize_input: False` ComfyUI would quantize activations by this layout, which is for weights.
    algorithm = {"storage_t": storage, "parameters": parameters, "comfy_tensor_layout": layout.__name__}
    QUANT_ALGOS.setdefault(name, algorithm | {"quantize_input": False})


def has_layout(weight: object, layout: str) -> bool:
    """Whether a weight is a QuantizedTensor of that layout."""
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == layout


def is_quantized_linear(module: torch.nn.Module) -> bool:
    """Whether a module is a Linear of a format of the pack that holds a weight of this format."""
    layout = getattr(module, "weight_layout", None)
    return layout is not None and has_layout(getattr(module, "weight", None), layout)


def quantized_operations(
    compute_dtype: torch.dtype, format_name: str, layout: str, quant_config: dict[str, Any] | None = None
) -> Any:
    """ComfyUI `operations` with the abstract Linear of a weight format. A Linear without a weight of this format, also
    one of ComfyUI's own formats, behaves as ComfyUI's."""
    base: Any = comfy.ops.mixed_precision_ops(quant_config or {}, compute_dtype)
    base_linear: Any = base.Linear

    class QuantizedOperations(base):
        class Linear(base_linear):
            weight_layout = layout

            def take_weight(self, state_dict: dict[str, torch.Tensor], key: str) -> QuantizedTensor | None:
                """Takes the quantized weight `key` and the tensors that belong to it out of a checked state dict; None
                if the weight is of no such format."""
                raise NotImplementedError

            def product(self, x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
                """x [..., M, K] times the quantized weight [N, K], plus bias [N] -> [..., M, N] in x's dtype."""
                raise NotImplementedError

            def _load_from_state_dict(
                self,
                state_dict: dict[str, torch.Tensor],
                prefix: str,
                local_metadata: dict[str, Any],
                strict: bool,
                missing: list[str],
                unexpected: list[str],
                errors: list[str],
            ) -> None:
                rest = (prefix, local_metadata, strict, missing, unexpected, errors)
                weight = self.take_weight(state_dict, prefix + "weight")
                if weight is None:
                    return super()._load_from_state_dict(state_dict, *rest)
                self.quant_format, self.layout_type = format_name, layout
                self.weight = torch.nn.Parameter(weight, requires_grad=False)
                torch.nn.Module._load_from_state_dict(self, state_dict, *rest)
                missing.remove(prefix + "weight")

            def state_dict(
                self, *args: Any, destination: dict[str, Any] | None = None, prefix: str = "", **kwargs: Any
            ) -> Any:
                """As ComfyUI's, in the tensors of the files that the format is loaded from, which have no
                `comfy_quant`."""
                tensors = super().state_dict(*args, destination=destination, prefix=prefix, **kwargs)
                if is_quantized_linear(self):
                    del tensors[f"{prefix}comfy_quant"]
                return tensors

            def _is_resident(self, device: torch.device, dtype: torch.dtype) -> bool:
                """Whether weight and bias can be used as they are for activations of that dtype on that device.
                Otherwise they are fetched: offloaded, patched, dynamic, or a bias of another dtype."""
                return (
                    self.weight.device == device
                    and (self.bias is None or self.bias.dtype == dtype)
                    and not self.weight_function
                    and not self.bias_function
                    and not is_streamed(self)
                    and not is_cast(self)
                )

            def quantized_weight(
                self, device: torch.device, dtype: torch.dtype
            ) -> AbstractContextManager[tuple[QuantizedTensor, torch.Tensor | None]]:
                """A context that gives the quantized weight and the bias, in `dtype`, on the device. The weight must
                not be patched."""
                if self._is_resident(device, dtype):
                    return nullcontext((self.weight, self.bias))
                options = {"bias_dtype": dtype, "compute_dtype": dtype, "want_requant": True}
                return fetched(self, dtype=self.weight.dtype, device=device, **options)

            def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
                """x [..., M, K] -> [..., M, N] in x's dtype."""
                if not is_quantized_linear(self) or not self._is_resident(x.device, x.dtype):
                    return super().forward(x, *args, **kwargs)  # which fetches the weight and calls `_forward`
                comfy.ops.run_every_op()
                return self._forward(x, self.weight, self.bias)

            def _forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
                if has_layout(weight, layout):
                    return self.product(x, weight, bias)
                y: torch.Tensor = super()._forward(x, weight, bias)
                return y

    return QuantizedOperations

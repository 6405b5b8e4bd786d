"""Side paths: the low-rank products of run-time LoRAs, added beside a linear of any weight format.

The matrices of a LoRA file are a small model of their own, which a model's patcher has as an additional model: ComfyUI
loads it together with that model, counts and frees its memory, and streams it under dynamic VRAM. The weight beside it
stays as it is, so a result does not depend on how much of the model is on the device, no copy of a weight is kept, and
another strength patches no weight."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.model_patcher
import comfy.ops
import torch
from comfy.patcher_extension import CallbacksMP

from ..lora import LowRank
from .quant import Quantized

_MATRICES = "turbodiffusion_lora"  # the key of a ModelPatcher's additional models


class SidePath(NamedTuple):
    """scale * up (down x) beside a linear [N, K], with the LoRA's strength in `scale`."""

    down: torch.nn.Linear  # [rank, K] without bias
    up: torch.nn.Linear  # [N, rank] without bias
    scale: float

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N] in x's dtype and on its device."""
        y: torch.Tensor = self.up(self.down(x) * self.scale)
        return y

    def change(self, x: torch.Tensor) -> torch.Tensor:
        """What the path adds to the weight beside it, [N, K], in x's dtype and on its device.

        Not to be called while that weight is fetched: ComfyUI may copy the matrices to the same memory."""
        identity = torch.eye(self.down.in_features, dtype=x.dtype, device=x.device)
        return self.product(identity).T


def side_path_operations(operations: Any) -> Any:
    """ComfyUI `operations` whose Linear adds its `side_paths` to the product of the given ones' Linear."""
    base_linear: Any = operations.Linear

    class SidePathOperations(operations):
        class Linear(base_linear):
            def __init__(self, *args: Any, **kwargs: Any):
                super().__init__(*args, **kwargs)
                # Plain data, which nodes set per clone of the model by an object patch; torch.compile guards it.
                self.side_paths: tuple[SidePath, ...] = ()

            def forward(self, x: torch.Tensor | Quantized, *args: Any, **kwargs: Any) -> torch.Tensor:
                """x [..., M, K], or a Quantized if the layer `takes_codes` -> [..., M, N] in x's dtype."""
                y: torch.Tensor = super().forward(x, *args, **kwargs)
                for path in self.side_paths:
                    y = y + path.product(values_of(x))
                return y

    return SidePathOperations


def values_of(x: torch.Tensor | Quantized) -> torch.Tensor:
    """The activation in float, which a Quantized for a layer with side paths must hold."""
    values = x if isinstance(x, torch.Tensor) else x.values
    assert values is not None
    return values


def side_paths(layer: torch.nn.Module) -> tuple[SidePath, ...]:
    """The side paths of a layer; none if it is not a linear of `side_path_operations`."""
    return getattr(layer, "side_paths", ())


def takes_side_paths(layer: torch.nn.Module) -> bool:
    """Whether a layer is a linear of `side_path_operations`."""
    return hasattr(layer, "side_paths")


def add_side_paths(patcher: comfy.model_patcher.ModelPatcher, changes: Sequence[LowRank], strength: float) -> None:
    """Gives linears of a model these low-rank changes, times `strength`, beside those that they have already; clones
    made before are not affected. The matrices keep their dtype and are not copied."""
    if not changes:
        return
    # Some tools write a linear's matrices as 1x1 convolutions.
    weights = [matrix.flatten(1) for change in changes for matrix in (change.down, change.up)]
    matrices = _matrices(weights, patcher.load_device, patcher.offload_device, not patcher.is_dynamic())
    layers = iter(matrices.model)
    for change, down, up in zip(changes, layers, layers, strict=True):
        name = f"diffusion_model.{change.layer}.side_paths"
        path = SidePath(down, up, change.scale * strength)
        patcher.add_object_patch(name, (*patcher.get_model_object(name), path))
    patcher.model.lora_matrices.add(matrices.model)
    patcher.set_additional_models(_MATRICES, [*patcher.get_additional_models_with_key(_MATRICES), matrices])
    for event in (CallbacksMP.ON_DEEPCLONE_MULTIGPU, CallbacksMP.ON_MATCH_MULTIGPU_CLONES):
        patcher.remove_callbacks_with_key(event, _MATRICES)
        patcher.add_callback_with_key(event, _MATRICES, _use_own_matrices)


def _matrices(
    weights: Sequence[torch.Tensor],
    load_device: torch.device,
    offload_device: torch.device,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """The matrices as a model of linears, in order. ComfyUI calls it again for a copy on another device."""
    # Looked up here, because ComfyUI replaces CoreModelPatcher when it turns dynamic VRAM on.
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    layers = torch.nn.ModuleList(_linear(weight) for weight in weights)
    patcher = patcher_class(layers, load_device=load_device, offload_device=offload_device)
    patcher.cached_patcher_init = (_matrices, (weights, load_device, offload_device))
    return patcher


def _use_own_matrices(original: comfy.model_patcher.ModelPatcher, copy: comfy.model_patcher.ModelPatcher) -> None:
    """Makes the side paths of a copy on another device, which ComfyUI gave matrices of its own, use these."""
    own = {each.clone_base_uuid: each.model for each in copy.get_additional_models_with_key(_MATRICES)}
    copy.model.lora_matrices.update(own.values())
    of = {
        theirs: mine
        for each in original.get_additional_models_with_key(_MATRICES)
        for theirs, mine in zip(each.model, own[each.clone_base_uuid], strict=True)
    }
    for layer, module in copy.model.diffusion_model.named_modules():
        name = f"diffusion_model.{layer}.side_paths"
        if takes_side_paths(module) and (paths := copy.get_model_object(name)):
            copy.add_object_patch(name, tuple(SidePath(of[path.down], of[path.up], path.scale) for path in paths))


def has_side_paths(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether any linear of a model has a side path."""
    return len(patcher.get_additional_models_with_key(_MATRICES)) > 0


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    """A Linear without bias that ComfyUI can offload, and that casts this weight to its input's dtype."""
    rows, columns = weight.shape
    layer: torch.nn.Linear = comfy.ops.manual_cast.Linear(columns, rows, bias=False, dtype=weight.dtype, device="meta")
    layer.load_state_dict({"weight": weight}, assign=True)
    return layer.requires_grad_(False)

"""What another ComfyUI than the one the pack was written with may lack or call otherwise: looked up here and nowhere else.

Too old hosts are refused before anything is imported (`environment.check_comfyui`). What is looked up here is of two kinds: private
marks on layers, whose absence means the plain way, and offers of the host that only make things easier."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import comfy.ops
import torch
from comfy.ldm.modules import attention
from server import PromptServer


def is_streamed(layer: torch.nn.Module) -> bool:
    """Whether dynamic VRAM holds the layer's weight and has to hand it out at each run (comfy/ops.py)."""
    return getattr(layer, "_v", None) is not None


def is_cast(layer: torch.nn.Module) -> bool:
    """Whether ComfyUI changes the layer's weight on its way to the device: hooks, a LoRA on an offloaded weight."""
    return getattr(layer, "comfy_force_cast_weights", False)


def fetched(
    layer: torch.nn.Module, *args, **kwargs
) -> AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]:
    """A context that gives weight and bias of a layer as ComfyUI would run it with: on the device, patched, of the right dtype.
    It takes the arguments of `comfy.ops.cast_bias_weight`. Afterwards the memory may be used for the next layer, also if the block
    has raised."""
    context = getattr(comfy.ops, "CastBiasWeightContext", _Fetched)
    return context(layer, *args, offloadable=True, **kwargs)


class _Fetched:
    """ComfyUI's CastBiasWeightContext for hosts before 0.34. A class, because torch.compile traces one without a graph break."""

    def __init__(self, layer: torch.nn.Module, *args, **kwargs):
        self.layer, self.fetched = layer, comfy.ops.cast_bias_weight(layer, *args, **kwargs)

    def __enter__(self):
        return self.fetched[:2]

    def __exit__(self, *_):
        comfy.ops.uncast_bias_weight(self.layer, *self.fetched)


def declared_dtypes(network: torch.nn.Module) -> dict[str, torch.dtype]:
    """The dtype that each parameter was built with, by its name. While dynamic VRAM is on, ComfyUI builds linears without
    tensors and keeps the dtype in an attribute."""
    dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
    for name, layer in network.named_modules():
        for kind in ("weight", "bias"):
            dtype = getattr(layer, f"{kind}_comfy_model_dtype", None)
            if dtype is not None:
                dtypes[f"{name}.{kind}"] = dtype
    return dtypes


def dense_attention(
    layer: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, transformer_options: dict
) -> torch.Tensor:
    """ComfyUI's attention for a WanSelfAttention, called as its own forward calls it: q, k, v [B, L, dim] -> [B, L, dim].

    A newer ComfyUI lets a model file choose the attention of a layer (`comfy_attention`)."""
    options = {"transformer_options": transformer_options}
    preferred = getattr(layer, "comfy_attention", None)
    if preferred is not None:
        options["preferred_attention"] = preferred
    return attention.optimized_attention(q, k, v, heads=layer.num_heads, **options)


def before_each_prompt(handler: Callable[[dict], dict]) -> bool:
    """Has the server pass each request of POST /prompt through `handler`; False where it cannot."""
    add = getattr(PromptServer.instance, "add_on_prompt_handler", None)
    if add is not None:
        add(handler)
    return add is not None


def node_replacements(api: object, io: object):
    """The register of nodes that stand for missing ones, from ComfyUI's `ComfyAPI()` and `io`; None where there is none."""
    return getattr(api, "node_replacement", None) if hasattr(io, "NodeReplace") else None

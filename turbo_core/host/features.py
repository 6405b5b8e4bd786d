"""The private or optional parts of ComfyUI that the pack uses. Only this module looks them up, and none is required:
private attributes of layers, whose absence means the default, and functions that not every supported version has.

Unsupported versions are refused before anything is imported (`environment.check_comfyui`)."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules import attention
from comfy_execution.utils import get_executing_context
from server import PromptServer


def is_streamed(layer: torch.nn.Module) -> bool:
    """Whether dynamic VRAM manages the layer's weight, which must then be fetched at each run (comfy/ops.py)."""
    return getattr(layer, "_v", None) is not None


def is_cast(layer: torch.nn.Module) -> bool:
    """Whether ComfyUI changes the layer's weight on its way to the device: hooks, a LoRA on an offloaded weight."""
    return getattr(layer, "comfy_force_cast_weights", False)


def multiplies_as_it_is(layer: torch.nn.Module) -> bool:
    """Whether a linear with a weight of ComfyUI's int8 multiplies it with the activation as it is given: its file asks
    neither for a product in float nor for another scale of the activation before (comfy/ops.py)."""
    scaled = getattr(layer, "pre_quant_scale", None) is not None or getattr(layer, "input_scale", None) is not None
    return not scaled and not getattr(layer, "_full_precision_mm", False)


def fetched(layer: torch.nn.Module, *args: Any, **kwargs: Any) -> AbstractContextManager[tuple[Any, Any]]:
    """A context that gives weight and bias of a layer as ComfyUI runs it: on the device, patched, in the dtype of the
    activations. The bias may be None. It takes the arguments of `comfy.ops.cast_bias_weight`, and releases the memory
    when the block ends or raises."""
    context: Any = getattr(comfy.ops, "CastBiasWeightContext", _Fetched)
    return context(layer, *args, offloadable=True, **kwargs)


class _Fetched:
    """ComfyUI's CastBiasWeightContext for hosts before 0.34. A class, because torch.compile traces one without a graph
    break."""

    def __init__(self, layer: torch.nn.Module, *args: Any, **kwargs: Any):
        self.layer, self.fetched = layer, comfy.ops.cast_bias_weight(layer, *args, **kwargs)

    def __enter__(self) -> tuple[Any, Any]:
        return self.fetched[:2]

    def __exit__(self, *_: object) -> None:
        comfy.ops.uncast_bias_weight(self.layer, *self.fetched)


def declared_dtypes(network: torch.nn.Module) -> dict[str, torch.dtype]:
    """The dtype of each parameter by name, as the network was constructed. With dynamic VRAM, ComfyUI constructs
    linears without tensors and keeps the dtype in an attribute."""
    dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
    for name, layer in network.named_modules():
        for kind in ("weight", "bias"):
            dtype = getattr(layer, f"{kind}_comfy_model_dtype", None)
            if dtype is not None:
                dtypes[f"{name}.{kind}"] = dtype
    return dtypes


def dense_attention(
    layer: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, transformer_options: dict
) -> torch.Tensor:
    """ComfyUI's attention for a WanSelfAttention, called as its own forward calls it: q, k, v [B, L, dim], or some of
    the layer's heads -> the same shape as q.

    A newer ComfyUI lets a model file choose the attention of a layer (`comfy_attention`)."""
    options = {"transformer_options": transformer_options}
    preferred = getattr(layer, "comfy_attention", None)
    if preferred is not None:
        options["preferred_attention"] = preferred
    return attention.optimized_attention(q, k, v, heads=q.shape[-1] // layer.head_dim, **options)


def before_each_prompt(handler: Callable[[dict], dict]) -> bool:
    """Registers `handler` for the body of each POST /prompt; returns False if this version cannot.

    A malformed prompt (the body, the prompt, a node or its inputs are no JSON object, a `class_type` is no string) is
    removed from the body: ComfyUI then answers "No prompt provided", where it would fail with a Python error."""
    add = getattr(PromptServer.instance, "add_on_prompt_handler", None)

    def on_prompt(body: object) -> dict:
        request = body if isinstance(body, dict) else {}
        prompt = request.get("prompt")
        if not isinstance(prompt, dict) or not all(map(_is_node, prompt.values())):
            request.pop("prompt", None)
        return handler(request)

    if add is not None:
        add(on_prompt)
    return add is not None


def _is_node(node: object) -> bool:
    """Whether this can be a node of a prompt; ComfyUI says what is wrong with one that lacks its type or inputs."""
    if not isinstance(node, dict):
        return False
    return isinstance(node.get("class_type", ""), str) and isinstance(node.get("inputs", {}), dict)


def nodes_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes with a type and inputs in the body of a POST /prompt."""
    prompt = request.get("prompt")
    nodes = prompt.values() if isinstance(prompt, dict) else ()
    return [node for node in nodes if _is_node(node) and {"class_type", "inputs"} <= node.keys()]


def show_on_node(node: Any, text: str) -> None:
    """Shows a text on a running node in the page, which does not show a `ui.PreviewText`. `node` is the class that
    ComfyUI executes, with `unique_id` among its hidden inputs. Does nothing outside of a prompt."""
    node_id = getattr(node.hidden, "unique_id", None)
    if node_id:
        server = PromptServer.instance
        server.send_progress_text(text, node_id)


def show_on_running_node(text: str) -> None:
    """As `show_on_node`, for the node that executes this code."""
    context = get_executing_context()
    if context is not None:
        server = PromptServer.instance
        server.send_progress_text(text, context.node_id)


def node_replacements(api: object, io: object) -> Any:
    """The registry of replacements for missing nodes, from ComfyUI's `ComfyAPI()` and `io`; None if this version has
    none."""
    return getattr(api, "node_replacement", None) if hasattr(io, "NodeReplace") else None

"""Tensor names: TurboDiffusion's and ComfyUI's differ in wrappers and in the shape of one layer."""

from collections.abc import Collection

import torch
from einops import rearrange

from ..errors import CheckpointError

# Training wrappers (`net.`, its average `net_ema.`, `module.` of torch's data parallelism), ComfyUI's own saver
# (`model.diffusion_model.`), and bare prefixes other tools leave.
_PREFIXES = ("diffusion_model.", "model.", "module.", "net.", "net_ema.")
# What torch's activation checkpointing, compiling and sharding put before and into names
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.", "_fsdp_wrapped_module.")
_INT8 = ".int8_weight"
# The last part of a name in TurboDiffusion's int8 files and in older ones of ComfyUI, and what it becomes
_SPELLINGS = {
    "int8_weight": "weight",
    "scale": "weight_scale",
    "scale_weight": "weight_scale",
    "scale_input": "input_scale",
}
PATCH_EMBEDDING = "patch_embedding.weight"
PATCH_SIZE = (1, 2, 2)


def has_linear_patch_embedding(tensors: dict[str, torch.Tensor]) -> bool:
    """TurboDiffusion's files hold the patch embedding as a Linear [dim, channels * 4], ComfyUI's as a Conv3d."""
    weight = tensors.get(PATCH_EMBEDDING)
    return weight is not None and weight.ndim == 2


def refuse_two_spellings(name: str, tensors: Collection[str]) -> None:
    """Raises CheckpointError if two tensor names of the file `name` are spellings of the same name, so that one tensor
    would replace the other."""
    spelled: dict[str, str] = {}
    for key in tensors:
        one = _unwrapped(key)
        layer, _, kind = one.rpartition(".")
        other = spelled.setdefault(f"{layer}.{_SPELLINGS.get(kind, kind)}", key)
        if other != key:
            raise CheckpointError(
                f"{name} holds one tensor under two names, {other} and {key}, which may differ; get the original file."
            )


def strip_wrappers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under bare names. Prefixes go, one after the other, only if every name has them, so foreign
    files stay as they are."""
    stripped = {_unwrapped(name): tensor for name, tensor in tensors.items()}
    while prefix := next((p for p in _PREFIXES if stripped and all(name.startswith(p) for name in stripped)), ""):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def to_comfyui(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in ComfyUI's names and shapes, each on its own storage (and with it a memory map).

    A quantized linear's `int8_weight` and `scale` become `weight` and `weight_scale`. Upstream flattens patches as
    (channel, t, h, w), so the reshape of the patch embedding is exact."""
    quantized = [name.removesuffix(_INT8) for name in tensors if name.endswith(_INT8)]
    names = {layer + _INT8: layer + ".weight" for layer in quantized} | {
        layer + ".scale": layer + ".weight_scale" for layer in quantized
    }
    tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
    if not has_linear_patch_embedding(tensors):
        return tensors
    weight = tensors[PATCH_EMBEDDING]
    if weight.shape[1] % 4 or not weight.numel():
        raise CheckpointError(
            f"{PATCH_EMBEDDING} is {list(weight.shape)}: its width must be a multiple of 4 (a 2x2 patch), and it "
            "must not be empty."
        )
    t, h, w = PATCH_SIZE
    return {**tensors, PATCH_EMBEDDING: rearrange(weight, "dim (c t h w) -> dim c t h w", t=t, h=h, w=w)}

"""LoRA files: which layers they change and by how much, whatever their key style."""

import re
from collections.abc import Collection
from typing import NamedTuple

import torch

from .errors import TurboError

# (suffix of the down matrix, of the up matrix)
_PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
)
_PREFIXES = re.compile(r"^(base_model\.model\.|model\.|diffusion_model\.|transformer\.|unet\.)+")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_")
# Diffusers' names for the layers of Wan, and ours
_DIFFUSERS = (
    (re.compile(r"\.attn1\.to_([qkv])$"), r".self_attn.\1"),
    (re.compile(r"\.attn1\.to_out\.0$"), ".self_attn.o"),
    (re.compile(r"\.attn2\.to_([qkv])$"), r".cross_attn.\1"),
    (re.compile(r"\.attn2\.to_out\.0$"), ".cross_attn.o"),
    (re.compile(r"\.attn2\.add_([kv])_proj$"), r".cross_attn.\1_img"),
    (re.compile(r"\.ffn\.net\.0\.proj$"), ".ffn.0"),
    (re.compile(r"\.ffn\.net\.2$"), ".ffn.2"),
    (re.compile(r"^condition_embedder\.text_embedder\.linear_1$"), "text_embedding.0"),
    (re.compile(r"^condition_embedder\.text_embedder\.linear_2$"), "text_embedding.2"),
    (re.compile(r"^condition_embedder\.time_embedder\.linear_1$"), "time_embedding.0"),
    (re.compile(r"^condition_embedder\.time_embedder\.linear_2$"), "time_embedding.2"),
    (re.compile(r"^condition_embedder\.time_proj$"), "time_projection.1"),
    (re.compile(r"^proj_out$"), "head.head"),
)


class LowRank(NamedTuple):
    """What a LoRA adds to a layer's weight [N, K]: scale * up [N, rank] @ down [rank, K]."""

    layer: str
    down: torch.Tensor
    up: torch.Tensor
    scale: float


def match(tensors: dict[str, torch.Tensor], layers: dict[str, tuple[int, int]]) -> list[LowRank]:
    """The changes a LoRA file makes to `layers` (names of the network's linears, with their shapes [N, K]), in the file's order.

    Reads diffusers, PEFT, kohya and musubi keys. Raises TurboError, naming what it saw, if none matches or if a pair is
    incomplete, does not belong together or is for a model of another size."""
    flat = {name.replace(".", "_"): name for name in layers}
    found = []
    for key in tensors:
        for down_suffix, up_suffix in _PAIRS:
            if key.endswith(down_suffix):
                stem = key.removesuffix(down_suffix)
                layer = _layer(stem, layers, flat)
                if layer is not None:
                    found.append(_low_rank(layer, key, stem + up_suffix, stem + ".alpha", tensors))
                    change = (found[-1].up.shape[0], found[-1].down.shape[1])
                    if change != layers[layer]:
                        raise TurboError(
                            f"The LoRA is for a model of another size: it changes {layer} by {list(change)}, which is "
                            f"{list(layers[layer])} here."
                        )
    if not found:
        seen = ", ".join(list(tensors)[:3]) or "nothing"
        raise TurboError(
            f"The LoRA changes no layer of this model (it holds {seen}...): use one made for Wan of this size."
        )
    return found


def _layer(stem: str, layers: Collection[str], flat: dict[str, str]) -> str | None:
    for prefix in _FLAT_PREFIXES:
        if stem.startswith(prefix):
            return flat.get(stem.removeprefix(prefix))
    name = _PREFIXES.sub("", stem)
    for pattern, ours in _DIFFUSERS:
        name = pattern.sub(ours, name)
    return name if name in layers else None


def _low_rank(layer: str, down_key: str, up_key: str, alpha_key: str, tensors: dict[str, torch.Tensor]) -> LowRank:
    down, up = tensors[down_key], tensors.get(up_key)
    if up is None:
        raise TurboError(f"The LoRA has {down_key} without {up_key}: the file is incomplete, get it again.")
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        raise TurboError(
            f"The LoRA's {down_key} {list(down.shape)} and {up_key} {list(up.shape)} do not belong together."
        )
    rank = down.shape[0]
    return LowRank(layer, down, up, float(tensors[alpha_key]) / rank if alpha_key in tensors else 1.0)

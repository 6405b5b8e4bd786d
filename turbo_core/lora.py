"""Which layers of a model a LoRA file changes, and how, whatever tool wrote it.

Understood are `lora_A`/`lora_B` (PEFT, diffusers), `lora_down`/`lora_up` (kohya, musubi) with `alpha`, and whole differences
(`diff`, `diff_b`), under dotted or underscored layer names, Wan's own or those of diffusers, with any common prefix."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import torch

from .errors import TurboError

_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "diffusion_model_",
    "transformer.",
    "unet.",
    "net.",
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
)
# How a key ends, and what it then holds. Anything else on a layer (DoRA, LoHa, LoKr, a bias of lora_B) makes it another kind
# of change, which is left alone as a whole rather than applied in part.
_PARTS = {
    ".lora_A.weight": "down",
    ".lora_A.default.weight": "down",
    ".lora_down.weight": "down",
    ".lora.down.weight": "down",
    ".lora_B.weight": "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    ".diff": "weight",
    ".diff_b": "bias",
}
_OTHER_PART = re.compile(r"\.(dora_scale|lora_\w+(\.\w+)*|hada_\w+|lokr_\w+|oft_\w+|reshape_weight|magnitude\w*)$")
_DIFFUSERS = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "self_attn": "attn1",
    "cross_attn": "attn2",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_BLOCK_LAYER = re.compile(r"(blocks\.\d+)\.(?:(self_attn|cross_attn)\.(q|k|v|o|k_img|v_img)|(ffn\.[02]))$")
_LISTED = 5


@dataclasses.dataclass(frozen=True)
class LowRank:
    """`weight += strength * scale * up @ down` on a layer; `down` [rank, in, ...], `up` [out, rank, ...]."""

    layer: str
    down: torch.Tensor
    up: torch.Tensor
    scale: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """`weight += strength * value` (or its bias) on a layer."""

    layer: str
    kind: str  # "weight" or "bias"
    value: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Match:
    """What a LoRA file does to a model, and the keys in it that belong to no layer or to another kind of change."""

    low_rank: list[LowRank]
    differences: list[Difference]
    unmatched: list[str]

    @property
    def layers(self) -> set[str]:
        return {change.layer for change in (*self.low_rank, *self.differences)}


def match(tensors: Mapping[str, torch.Tensor], layer_names: Iterable[str]) -> Match:
    """What the tensors of a LoRA file do to a model with these layers (`blocks.0.self_attn.q`, without `.weight`).

    Nothing that matches is no error here: see `nothing_matched`."""
    known = _spellings(layer_names)
    modules: dict[str, dict[str, str]] = {}  # module name: what it holds: the key
    strange: dict[str, list[str]] = {}
    for key in tensors:
        module, part = _split(key)
        if part is None or part in modules.get(module, {}):
            strange.setdefault(module, []).append(key)
        else:
            modules.setdefault(module, {})[part] = key
    low_rank, differences, used = [], [], set()
    for module, keys in modules.items():
        layer = known.get(_bare(module))
        part = {kind: tensors[key] for kind, key in keys.items()}
        whole = "down" in keys and "up" in keys
        if layer is None or module in strange or not (whole or keys.keys() & {"weight", "bias"}):
            continue
        if whole and not _is_low_rank(part):
            continue
        if whole:
            scale = float(part["alpha"]) / part["down"].shape[0] if "alpha" in part else 1.0
            low_rank.append(LowRank(layer, part["down"], part["up"], scale))
        elif "down" in keys or "up" in keys:
            continue
        differences += [Difference(layer, kind, part[kind]) for kind in ("weight", "bias") if kind in part]
        used.update(keys.values())
    return Match(low_rank, differences, [key for key in tensors if key not in used])


def _is_low_rank(part: Mapping[str, torch.Tensor]) -> bool:
    """Whether `down` and `up` are matrices (or kernels) with at least one rank, and `alpha`, if there is one, a number."""
    alpha = part.get("alpha")
    matrices = part["down"].ndim > 1 and part["up"].ndim > 1 and part["down"].shape[0] > 0
    return matrices and (alpha is None or (alpha.numel() == 1 and math.isfinite(float(alpha))))


def check_shapes(name: str, found: Match, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises TurboError naming the first change that does not fit its tensor; `shapes` by tensor name, `name` is the file's."""
    for change in found.low_rank:
        out, width = shapes[f"{change.layer}.weight"][0], math.prod(shapes[f"{change.layer}.weight"][1:])
        down, up = change.down.flatten(1), change.up.flatten(1)
        if (up.shape[0], down.shape[1]) != (out, width) or up.shape[1] != down.shape[0]:
            raise TurboError(
                f"{name} does not fit this model: on {change.layer}, which is {out} x {width}, it holds {list(up.shape)} times "
                f"{list(down.shape)}; use a LoRA made for a model of this size."
            )
    for difference in found.differences:
        expected = shapes.get(f"{difference.layer}.{difference.kind}")
        if expected is None or difference.value.numel() != math.prod(expected):
            raise TurboError(
                f"{name} does not fit this model: its difference for {difference.layer}.{difference.kind} is {list(difference.value.shape)} "
                f"instead of {list(expected or ())}; use a LoRA made for a model of this size."
            )


def nothing_matched(name: str, tensors: Mapping[str, torch.Tensor]) -> TurboError:
    """The error for a LoRA file of which nothing belongs to the model."""
    more = f" and {len(tensors) - _LISTED} more" if len(tensors) > _LISTED else ""
    return TurboError(
        f"{name} changes no layer of this model: it holds {', '.join(list(tensors)[:_LISTED])}{more}; use a LoRA "
        "(lora_A/lora_B or lora_down/lora_up) made for Wan."
    )


def _split(key: str) -> tuple[str, str | None]:
    """The module of a key and what the key holds of it; None for a kind of change not understood."""
    for ending, part in _PARTS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    return _OTHER_PART.sub("", key), None


def _bare(module: str) -> str:
    """A module's name without prefixes, dots as underscores."""
    while True:
        prefix = next((p for p in _PREFIXES if module.startswith(p)), None)
        if prefix is None:
            return module.replace(".", "_")
        module = module[len(prefix) :].lstrip("_")


def _spellings(layer_names: Iterable[str]) -> dict[str, str]:
    """Layer by each of its names, dots as underscores."""
    spellings: dict[str, str] = {}
    for layer in layer_names:
        for name in (layer, _diffusers_name(layer)):
            spellings.setdefault(name.replace(".", "_"), layer)
    return spellings


def _diffusers_name(layer: str) -> str:
    found = _BLOCK_LAYER.match(layer)
    if found is None:
        return _DIFFUSERS.get(layer, layer)
    block, *parts = found.groups()
    return ".".join([block, *(_DIFFUSERS[part] for part in parts if part)])

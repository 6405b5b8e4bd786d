"""Which layers of a model a LoRA file changes, and how; and why not, for each tensor that is not used.

Supported are `lora_A`/`lora_B` (PEFT, diffusers), `lora_down`/`lora_up` (kohya, musubi) with `alpha`, and whole
differences (`diff`, `diff_b`), under dotted or underscored layer names, Wan's own or those of diffusers, with any
common prefix."""

import dataclasses
import enum
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

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
# The end of a key, and the part of a module that it holds. With any other part (DoRA, LoHa, LoKr, a bias of lora_B) a
# module is an unsupported kind of change, which is not used at all rather than in part.
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
_BLOCK_IN_NAME = re.compile(r"_(blocks_\d+_.*)")


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


class Reason(enum.Enum):
    """Why tensors of a LoRA file are not used, as it follows their number in a report."""

    OTHER_MODEL = "for no layer of this model"
    OTHER_SIZE = "for a layer of another size"
    KEY_STYLE = "in an unknown key style"
    INCOMPLETE = "without the rest of their pair"
    KIND = "of an unsupported kind (DoRA, LoHa, LoKr, LoRA biases)"
    INVALID = "with an invalid rank or alpha"
    TWICE = "given twice, in two key styles"


@dataclasses.dataclass(frozen=True)
class Match:
    """What a LoRA file does to a model: its changes, the reason for each key that is not used, and of how many tensors
    and layers (`total_layers`, of this model or another) the file consists."""

    low_rank: list[LowRank]
    differences: list[Difference]
    unused: dict[str, Reason]
    total: int
    total_layers: int

    @property
    def layers(self) -> set[str]:
        """The model's layers that change."""
        return {each.layer for each in self.low_rank} | {each.layer for each in self.differences}

    @property
    def report(self) -> str:
        """One line: how many layers of the file change the model, and why the other tensors do not."""
        return "; ".join(filter(None, [f"{len(self.layers)} of {self.total_layers} layers", self.unused_report]))

    @property
    def unused_report(self) -> str:
        """How many tensors are not used for which reason, with the first key of each; empty if all are used."""
        if not self.unused:
            return ""
        reasons = Counter(self.unused.values()).most_common()
        first = {reason: key for key, reason in reversed(self.unused.items())}
        listed = ", ".join(f"{count} {reason.value} (first: {first[reason]})" for reason, count in reasons)
        return f"{len(self.unused)} of {self.total} tensors not used: {listed}"


@dataclasses.dataclass
class _Module:
    """What a file holds of one module: its keys, the supported ones by part, and why the module cannot be used."""

    keys: list[str] = dataclasses.field(default_factory=list)
    parts: dict[str, str] = dataclasses.field(default_factory=dict)
    reason: Reason | None = None


def match(name: str, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Match:
    """What the LoRA file `name`, which holds `tensors`, does to a model whose parameters have these `shapes` by name.

    A module of the file is used as a whole or not at all. Raises TurboError if no module can be used, if a tensor that
    would be used is complex, or if more modules have another size than the model's layer than fit: by chance a few
    layers of a model of another size have the same size."""
    known = _spellings(key.removesuffix(".weight") for key in shapes if key.endswith(".weight"))
    changes: list[LowRank | Difference] = []
    unused: dict[str, Reason] = {}
    layers: set[str] = set()
    misfits: list[str] = []
    for module, held in _modules(tensors).items():
        bare = _bare(module)
        layer = known.get(bare)
        if layer is None and known.keys() & _BLOCK_IN_NAME.findall(bare):
            held.reason = Reason.KEY_STYLE  # a layer of this model under an unknown prefix
        if held.reason is not Reason.KEY_STYLE:
            layers.add(layer or bare)
        found = _changes(layer, held, tensors)
        if not isinstance(found, Reason):
            misfit = next(filter(None, (_misfit(change, shapes) for change in found)), None)
            if misfit is None:
                changes += found
                continue
            misfits.append(misfit)
            found = Reason.OTHER_SIZE
        unused |= dict.fromkeys(held.keys, found)
    result = Match(
        [change for change in changes if isinstance(change, LowRank)],
        [change for change in changes if isinstance(change, Difference)],
        {key: unused[key] for key in tensors if key in unused},
        len(tensors),
        len(layers),
    )
    if len(misfits) > len(result.layers):
        raise TurboError(f"{name} does not fit this model: {misfits[0]}; use a LoRA made for a model of this size.")
    if not result.layers:
        raise TurboError(
            f"{name} changes no layer of this model: {result.unused_report or 'it is empty'}; use a LoRA "
            "(lora_A/lora_B or "
            "lora_down/lora_up) made for Wan."
        )
    _refuse(name, "complex", tensors, result, torch.is_complex)
    return result


def check_values(name: str, tensors: Mapping[str, torch.Tensor], found: Match) -> None:
    """Raises TurboError if a tensor that `found` uses holds values that are NaN or infinite in float32. Apart from
    `match`, because it reads the whole file: Convert reads each tensor once, and checks what it writes."""
    _refuse(name, "NaN or infinite", tensors, found, lambda tensor: not tensor.float().isfinite().all())


def _refuse(
    name: str, what: str, tensors: Mapping[str, torch.Tensor], found: Match, is_bad: Callable[[torch.Tensor], bool]
) -> None:
    bad = next((key for key, tensor in tensors.items() if key not in found.unused and is_bad(tensor)), None)
    if bad is not None:
        raise TurboError(f"{name} cannot be used: {bad} holds {what} values; download the file again, or use another.")


def _modules(tensors: Iterable[str]) -> dict[str, _Module]:
    """The modules of a LoRA file by the names it gives them."""
    modules: dict[str, _Module] = {}
    for key in tensors:
        module, part = _split(key)
        held = modules.setdefault(module, _Module())
        held.keys.append(key)
        if isinstance(part, Reason):
            held.reason = part
        elif part in held.parts:
            held.reason = Reason.TWICE
        else:
            held.parts[part] = key
    return modules


def _changes(
    layer: str | None, held: _Module, tensors: Mapping[str, torch.Tensor]
) -> list[LowRank | Difference] | Reason:
    """What a module of a file does to the layer of that name, or why it does nothing."""
    if held.reason is not None and (layer is not None or held.reason is Reason.KEY_STYLE):
        return held.reason
    if layer is None:
        return Reason.OTHER_MODEL
    part = {kind: tensors[key] for kind, key in held.parts.items()}
    pair = {"down", "up"} & part.keys()
    if len(pair) == 1 or part.keys() == {"alpha"}:
        return Reason.INCOMPLETE
    changes: list[LowRank | Difference] = []
    if pair:
        if not _is_low_rank(part):
            return Reason.INVALID
        scale = float(part["alpha"]) / part["down"].shape[0] if "alpha" in part else 1.0
        changes.append(LowRank(layer, part["down"], part["up"], scale))
    return changes + [Difference(layer, kind, part[kind]) for kind in ("weight", "bias") if kind in part]


def _is_low_rank(part: Mapping[str, torch.Tensor]) -> bool:
    """Whether `down` and `up` are matrices (or kernels) with at least one rank, and `alpha`, if there is one, a
    number."""
    alpha = part.get("alpha")
    matrices = part["down"].ndim > 1 and part["up"].ndim > 1 and part["down"].shape[0] > 0
    return matrices and (
        alpha is None or (alpha.numel() == 1 and not alpha.is_complex() and math.isfinite(float(alpha)))
    )


def _misfit(change: LowRank | Difference, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """In which way a change does not fit its parameter; None if it fits."""
    if isinstance(change, Difference):
        expected = shapes.get(f"{change.layer}.{change.kind}")
        if expected is not None and change.value.numel() == math.prod(expected):
            return None
        given, wanted = list(change.value.shape), list(expected or ())
        return f"its difference for {change.layer}.{change.kind} is {given} instead of {wanted}"
    out, *inner = shapes[f"{change.layer}.weight"]
    width = math.prod(inner)
    down, up = change.down.flatten(1), change.up.flatten(1)
    if (up.shape[0], down.shape[1]) == (out, width) and up.shape[1] == down.shape[0]:
        return None
    return f"on {change.layer}, which is {out} x {width}, it holds {list(up.shape)} times {list(down.shape)}"


def _split(key: str) -> tuple[str, str | Reason]:
    """The module of a key, and which part of it the key holds or why the key cannot be used."""
    for ending, part in _PARTS.items():
        if key.endswith(ending):
            return key.removesuffix(ending), part
    module, found = _OTHER_PART.subn("", key)
    return module, Reason.KIND if found else Reason.KEY_STYLE


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

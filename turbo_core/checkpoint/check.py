"""Checks that a state dict has every tensor of the model that it looks like, and no others."""

from collections.abc import Mapping

import torch

from ..errors import CheckpointError
from .comfy_quant import is_side_of, quant_problems, quantized_layers
from .layout import PROJ_L, TILED, WanSpec, count_layers, tile_layers, tile_shape
from .packed import Packed, as_unpacked, packed_problems

_LISTED = 10
_ATTENTION = ".comfy_attention.config"  # the attention that ComfyUI uses for a layer; older versions ignore it


def check_complete(
    name: str,
    spec: WanSpec,
    tensors: dict[str, torch.Tensor],
    packed: Mapping[str, Packed],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises one CheckpointError that lists every disagreement between a file and the float `shapes` of a model of its
    spec, by kind, the first ten of each and their number, and says what the file looks like instead. `name` is used in
    the message only; `packed`: the 4-bit weights."""
    packed_wrong = packed_problems(tensors, packed)
    tensors = as_unpacked(tensors, packed)
    expected = dict(shapes)
    quant_wrong = quant_problems(tensors, expected)
    tiled = tile_layers(tensors)
    for layer in tiled:
        expected[f"{layer}.weight_scale"] = tile_shape(tensors[f"{layer}.weight"].shape)
    quantized = quantized_layers(tensors)
    theirs = {f"{layer}.weight" for layer in quantized}  # with a shape and type of their own: `quant_problems`

    present = [key for key in expected if key in tensors and key not in theirs]
    misshapen = [key for key in present if tuple(tensors[key].shape) != expected[key]]
    mistyped = [key for key in present if not _type_fits(key, tensors[key].dtype, tiled)]
    problems = {
        "missing": [key for key in expected if key not in tensors],
        "unexpected": [key for key in tensors if key not in expected and not _is_comfyui_s(key, quantized)],
        "wrongly shaped": [f"{key} {list(tensors[key].shape)} instead of {list(expected[key])}" for key in misshapen],
        "of a wrong type": [f"{key} {str(tensors[key].dtype).removeprefix('torch.')}" for key in mistyped],
    }
    for wrong in (packed_wrong, quant_wrong):
        for kind, names in wrong.items():
            problems[kind] = problems.get(kind, []) + [key for key in names if key not in problems.get(kind, [])]
    if not any(problems.values()):
        scales = [f"{layer}.weight_scale" for layer in tiled]
        problems["with scales that are not positive numbers"] = [key for key in scales if not _is_scale(tensors[key])]
    if any(problems.values()):
        listed = " ".join(_listed(kind, names) for kind, names in problems.items() if names)
        raise CheckpointError(f"{name} is not a complete {spec.describe()}. {listed} {_diagnosis(spec, problems)}")


def _is_comfyui_s(key: str, quantized: set[str]) -> bool:
    """Whether ComfyUI reads the tensor itself: beside the weight of a layer in one of its formats, or a layer's
    attention."""
    return key.endswith(_ATTENTION) or is_side_of(key, quantized)


def _type_fits(key: str, dtype: torch.dtype, tiled: set[str]) -> bool:
    layer, _, kind = key.rpartition(".")
    if layer in tiled and kind == "weight":
        # Only the blocks' linears are multiplied in int8; embeddings, head and proj_l are not.
        return layer.startswith(TILED) and not layer.endswith(PROJ_L)
    return dtype == torch.float32 if kind == "weight_scale" else dtype.is_floating_point


def _is_scale(scale: torch.Tensor) -> bool:
    return scale.is_meta or bool((scale.isfinite() & (scale > 0)).all())


def _listed(kind: str, names: list[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{more}."


def _diagnosis(spec: WanSpec, problems: dict[str, list[str]]) -> str:
    """What the file looks like instead."""
    kinds = {kind for kind, names in problems.items() if names}
    missing = problems["missing"]
    if kinds == {"missing"}:
        if all(PROJ_L in key for key in missing):
            return (
                "Some layers lack the trained proj_l: it looks like a plain Wan model merged with parts of a "
                "TurboWan one."
            )
        if all(key.endswith(".weight_scale") for key in missing):
            return "It looks like int8 weights without their scales: convert or download it again."
        if count_layers(missing) > 0 or all(key.startswith("head.") for key in missing):
            return "It looks like a truncated file: get it again."
        return "It looks like part of a model: get the whole file."
    if kinds == {"unexpected"} and spec.camera:
        return "It looks like another model with camera control than LingBot-World, which this node does not load."
    if kinds == {"unexpected"}:
        return "It looks like a different kind of Wan model: load it with Load Diffusion Model."
    if "unreadable" in kinds:
        return "It looks like a damaged file: download or convert it again."
    if kinds <= {"wrongly shaped", "of a wrong type", "with scales that are not positive numbers"} and spec.int8:
        return "It looks like a damaged int8 file: convert or download it again."
    if kinds <= {"wrongly shaped", "of a wrong type", "not finite", "missing"} and spec.four_bit:
        return "It looks like a damaged 4-bit file: download it again."
    return "It looks like another model or a mixture of two."

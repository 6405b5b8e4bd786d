"""ComfyUI's own quantization: beside a linear's weight, a `comfy_quant` tensor holds JSON with the name of its
format."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping

import torch

from .packed import KINDS

SUFFIX = ".comfy_quant"
SIDES = ("weight_scale", "comfy_quant", "weight_scale_2", "input_scale", "pre_quant_scale")
_JSON_LIMIT = 1 << 16  # bytes
_LARGEST_GROUP = 1 << 16
# The types of the weight and whether its shape is the layer's own, in the formats of ComfyUI 0.30; later ones pass
# unchecked.
_FORMATS = {
    "float8_e4m3fn": ((torch.float8_e4m3fn, torch.uint8), True),
    "float8_e5m2": ((torch.float8_e5m2, torch.uint8), True),
    "mxfp8": ((torch.float8_e4m3fn, torch.uint8), True),
    "int8_tensorwise": ((torch.int8,), True),
    "nvfp4": ((torch.uint8,), False),
    "convrot_w4a4": ((torch.int8, torch.uint8), False),
}
_NOT_COMFYUI_S = ("int8_block", "int8_rowwise", "fp8_e4m3fn", *KINDS)  # this pack's names of formats
_SCALE_PER_ROW = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")  # one scale for each row or for the whole weight


def quantized_layers(tensors: Collection[str]) -> set[str]:
    """The layers that have a `comfy_quant` tensor."""
    return {key.removesuffix(SUFFIX) for key in tensors if key.endswith(SUFFIX)}


def is_side_of(key: str, layers: Collection[str]) -> bool:
    """Whether ComfyUI may read the tensor `key` beside the weight of one of these quantized layers; newer formats bring
    more `weight_...`."""
    layer, _, name = key.rpartition(".")
    return layer in layers and (name in SIDES or name.startswith("weight_"))


def read_format(tensor: torch.Tensor) -> tuple[str, bool]:
    """The name of the format in a `comfy_quant` tensor, and whether the weights are rotated. Raises ValueError for one
    that ComfyUI cannot read."""
    try:
        if tensor.dtype != torch.uint8 or tensor.numel() > _JSON_LIMIT:
            raise ValueError
        stored = json.loads(bytes(tensor.flatten().tolist()))
        params = stored.get("params") or {}
        group = stored.get("convrot_groupsize", params.get("convrot_groupsize", 256))
        name = stored["format"]
        if (
            not isinstance(name, str)
            or name in _NOT_COMFYUI_S
            or type(group) is not int
            or not 1 <= group <= _LARGEST_GROUP
        ):
            raise ValueError
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError from error
    return name, bool(stored.get("convrot") or params.get("convrot"))


def is_int8_alone(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether ComfyUI's int8 is the only format of the quantized layers, of which there are some."""
    try:
        formats = {read_format(tensors[f"{layer}{SUFFIX}"])[0] for layer in quantized_layers(tensors)}
    except ValueError:  # `quant_problems` names the layer
        return False
    return formats == {"int8_tensorwise"}


def quant_problems(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, list[str]]:
    """What of the quantized layers is missing, unexpected, unreadable, wrongly shaped or of a wrong type, by kind as in
    `check_complete`; `expected`: the shapes of the unquantized model by tensor name."""
    problems: dict[str, list[str]] = defaultdict(list)
    for layer in sorted(quantized_layers(tensors)):
        key, scale_key = f"{layer}.weight", f"{layer}.weight_scale"
        shape = expected.get(key, ())
        if len(shape) != 2:
            problems["unexpected"].append(f"{layer}{SUFFIX}")
            continue
        config = tensors[f"{layer}{SUFFIX}"]
        if config.is_meta or key not in tensors:
            continue  # a weight that is missing is reported with the others
        try:
            name, _ = read_format(config)
        except ValueError:
            problems["unreadable"].append(f"{layer}{SUFFIX}")
            continue
        if name not in _FORMATS:
            continue
        weight, scale = tensors[key], tensors.get(scale_key)
        dtypes, own_shape = _FORMATS[name]
        if weight.dtype not in dtypes:
            problems["of a wrong type"].append(f"{key} {str(weight.dtype).removeprefix('torch.')}")
        elif weight.ndim != 2 or weight.shape[0] != shape[0] or (own_shape and tuple(weight.shape) != shape):
            problems["wrongly shaped"].append(f"{key} {list(weight.shape)} instead of {list(shape)}")
        if scale is None:
            problems["missing"].append(scale_key)
        elif name in _SCALE_PER_ROW and scale.numel() not in (1, shape[0]):
            problems["wrongly shaped"].append(f"{scale_key} {list(scale.shape)}")
        elif name in _SCALE_PER_ROW and not scale.dtype.is_floating_point:
            problems["of a wrong type"].append(f"{scale_key} {str(scale.dtype).removeprefix('torch.')}")
    return problems

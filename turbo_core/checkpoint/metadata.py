"""The metadata of a safetensors file. It adds what the tensors cannot tell, and is refused where it contradicts them.

Two keys of ComfyUI's are read, `config` (its own loader takes sizes of the network from it) and
`_quantization_metadata` (which layers are quantized), and one of ours, `turbodiffusion` (how our converter made the
file)."""

import json
from collections.abc import Mapping

from ..errors import CheckpointError
from .keys import PATCH_SIZE
from .layout import HEAD_DIM, WanSpec
from .variants import I2V, T2V

METADATA_KEY = "turbodiffusion"
CONFIG, QUANTIZATION = "config", "_quantization_metadata"
_LIMIT = 4 << 20  # characters of a value; a `_quantization_metadata` of 400 layers has 21,000
# What every Wan model has, under ComfyUI's names
_CONSTANTS = {
    "image_model": "wan2.1",
    "patch_size": list(PATCH_SIZE),
    "freq_dim": 256,
    "window_size": [-1, -1],
    "qk_norm": True,
    "cross_attn_norm": True,
    "eps": 1e-6,
}


def check_metadata(name: str, metadata: Mapping[str, str]) -> None:
    """Raises CheckpointError for a value that this pack or ComfyUI reads and that is not what it should be; `name` is
    the file's."""
    for key in (CONFIG, QUANTIZATION, METADATA_KEY):
        if key not in metadata:
            continue
        content = _parsed(metadata[key])
        valid = isinstance(content, dict)
        if key == QUANTIZATION:
            layers = content.get("layers") if isinstance(content, dict) else None
            valid = isinstance(layers, dict) and all(isinstance(layer, dict) for layer in layers.values())
        if not valid:
            raise CheckpointError(
                f"{name} has metadata that cannot be read ({key}): download it again, or save it without that metadata."
            )


def check_config(name: str, metadata: Mapping[str, str], spec: WanSpec) -> None:
    """Raises CheckpointError where the `config` in the metadata says something else of the network than its tensors do.
    Settings that are not known here are ignored."""
    found = _CONSTANTS | {
        "dim": spec.dim,
        "ffn_dim": spec.ffn_dim,
        "num_heads": spec.dim // HEAD_DIM,
        "num_layers": spec.layers,
        "in_dim": spec.in_channels,
        "out_dim": spec.out_channels,
        "text_dim": spec.text_width,
        "flf_pos_embed_token_number": spec.image_positions,
    }
    if spec.variant in (T2V, I2V):
        found["model_type"] = "i2v" if spec.image_embedding else "t2v"
    for key, value in _stated(metadata).items():
        if key in found and value != found[key]:
            raise CheckpointError(
                f"{name} has metadata that contradicts its tensors (config: {key} is {_shown(value)}, and the "
                "tensors say "
                f"{_shown(found[key])}): download it again, or save it without that metadata."
            )


def stated_kind(metadata: Mapping[str, str]) -> dict[str, object]:
    """What the `config` says of the kind of a model that its tensors do not: ComfyUI tells some kinds (Animate 2,
    FlowRVS, causal models) from T2V and I2V by it alone. Empty for T2V and I2V, and for a file that says nothing."""
    stated = _stated(metadata)
    kind = {key: stated[key] for key in ("model_type", "causal_ar") if isinstance(stated.get(key), (str, bool))}
    plain = kind.get("model_type", "t2v") in ("t2v", "i2v") and not kind.get("causal_ar")
    return {} if plain else kind


def _stated(metadata: Mapping[str, str]) -> dict[str, object]:
    config = _parsed(metadata.get(CONFIG, "{}"))
    stated = config.get("transformer") if isinstance(config, dict) else None
    return stated if isinstance(stated, dict) else {}


def recorded_as_turbo(metadata: Mapping[str, str]) -> bool:
    """Whether our converter made the file, unless its record says that it did so from a stock Wan model."""
    return METADATA_KEY in metadata and _record(metadata).get("turbo") is not False


def recorded_training(metadata: Mapping[str, str]) -> str:
    """The task, T2V or I2V, whose few steps our converter carried over to the model; empty for none."""
    task = _record(metadata).get("trained_as")
    return task if task in (T2V, I2V) else ""


def _record(metadata: Mapping[str, str]) -> dict[str, object]:
    record = _parsed(metadata.get(METADATA_KEY, "{}"))
    return record if isinstance(record, dict) else {}


def carried_along(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata that a converted file keeps: all but what describes how the source was stored."""
    return {key: value for key, value in metadata.items() if key not in (CONFIG, QUANTIZATION, METADATA_KEY)}


def _parsed(text: str) -> object:
    """The JSON value, or None for text that is not JSON or is too long."""
    if len(text) > _LIMIT:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shown(value: object) -> str:
    return str(value)[:40]

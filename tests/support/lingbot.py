"""Tiny LingBot-World checkpoints, as published and packed to 4 bits by bitsandbytes."""

import importlib
import json
import logging
import sys
from pathlib import Path

import safetensors.torch
import torch

from ...turbo_core.camera.embed import embed
from ...turbo_core.camera.presets import path_from_preset
from . import checkpoints

HIGH, LOW = "tiny_lingbot_high.safetensors", "tiny_lingbot_low.safetensors"
CHANNELS = {"cam": 384, "act": 448}  # of the control, in the latent's size
CAMERA_LAYERS = ("cam_injector_layer1", "cam_injector_layer2", "cam_scale_layer", "cam_shift_layer")
GLOBAL_LAYERS = ("c2ws_hidden_states_layer1", "c2ws_hidden_states_layer2")


def shapes(control: str, dim: int, ffn_dim: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Every key of the network with its shape, the patch embedding as a matrix [dim, 144]."""
    named = checkpoints.shapes(dim, ffn_dim, layers, in_channels=36, sla=False)
    linears = {"patch_embedding_wancamctrl": 4 * CHANNELS[control]} | dict.fromkeys(GLOBAL_LAYERS, dim)
    linears |= {f"blocks.{i}.{name}": dim for i in range(layers) for name in CAMERA_LAYERS}
    for name, width in linears.items():
        named |= {f"{name}.weight": (dim, width), f"{name}.bias": (dim,)}
    return named


def state_dict(
    seed: int, control: str = "cam", dim: int = 256, ffn_dim: int = 512, layers: int = 2
) -> dict[str, torch.Tensor]:
    """A bfloat16 checkpoint as published: the values of the golden recipe, the patch embedding as a convolution."""
    sd = {key: checkpoints.weight(seed, key, shape) for key, shape in shapes(control, dim, ffn_dim, layers).items()}
    sd["patch_embedding.weight"] = sd["patch_embedding.weight"].unflatten(1, (36, 1, 2, 2)).contiguous()
    return sd


def camera_of(
    preset: str = "orbit_left", length: int = 9, ease: str = "smooth", width: int = 96, height: int = 64
) -> torch.Tensor:
    """The embedding of a ready-made move, as a `cam` model takes it."""
    return embed(path_from_preset(preset, 1.0, ease, length), width, height, "cam")


def is_linear(key: str, value: torch.Tensor) -> bool:
    """Whether a key is the weight of a linear layer, all of which bitsandbytes packs."""
    return key.endswith(".weight") and value.ndim == 2


def packed(sd: dict[str, torch.Tensor], kind: str = "nf4", double: bool = True) -> dict[str, torch.Tensor]:
    """The checkpoint with every linear as bitsandbytes' 4-bit linears save it; `double`: scales quantized again."""
    result = {}
    for key, value in sd.items():
        result |= pack(key, value, kind, double) if is_linear(key, value) else {key: value}
    return result


def pack(
    key: str, value: torch.Tensor, kind: str = "nf4", double: bool = True, blocksize: int = 64
) -> dict[str, torch.Tensor]:
    """The tensors of one packed weight by name."""
    codes, state = bitsandbytes().functional.quantize_4bit(
        value, blocksize=blocksize, compress_statistics=double, quant_type=kind
    )
    return {key: codes} | {f"{key}.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}


def unpack(sd: dict[str, torch.Tensor], key: str, dtype: torch.dtype) -> torch.Tensor:
    """bitsandbytes' own dequantization of one packed weight."""
    functional = bitsandbytes().functional
    state = {name.removeprefix(key + "."): value for name, value in sd.items() if name.startswith(key + ".")}
    quantized = functional.QuantState.from_dict(state, device="cpu")
    quantized.dtype = dtype
    with torch.compiler.set_stance("force_eager"):  # it would compile itself for each shape
        return functional.dequantize_4bit(sd[key], quantized)


def bitsandbytes():
    """The module, which at its import looks for a package called `kernels` and reports its absence. The folders of that
    name here are not it, so there is none while it looks."""
    before = sys.modules.get("kernels")
    sys.modules["kernels"] = None
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module("bitsandbytes")
    finally:
        logging.disable(logging.NOTSET)
        del sys.modules["kernels"]
        if before is not None:
            sys.modules["kernels"] = before


def write_models(models_dir: Path) -> None:
    """Two experts with one block each, in 4 bits."""
    for name, seed in ((HIGH, 4), (LOW, 5)):
        checkpoints.write_safetensors(models_dir / "diffusion_models" / name, packed(state_dict(seed, layers=1)))


def write_shards(folder: Path, sd: dict[str, torch.Tensor], count: int, stem: str = "diffusion_pytorch_model") -> Path:
    """The checkpoint in `count` safetensors files and their index, as diffusers writes them; returns the index."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    keys = sorted(sd)
    for i in range(count):
        name = f"{stem}-{i + 1:05}-of-{count:05}.safetensors"
        part = {key: sd[key] for key in keys[i::count]}
        safetensors.torch.save_file(part, folder / name, {"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    size = sum(value.numel() * value.element_size() for value in sd.values())
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": weight_map}))
    return index

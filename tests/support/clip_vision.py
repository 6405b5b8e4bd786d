"""A CLIP vision encoder in the layout of ViT-H, the only one whose output Wan's I2V takes.

ComfyUI builds it at full size whatever the file holds. So the file has 1.3 GB, nearly all of them a hole that reads as
zeros: each layer adds zero, and the output is the normalized embedding of the picture's patches."""

import itertools
import json
import math
from pathlib import Path

import torch

from .checkpoints import draw

FILE = "tiny_clip_vision_h.safetensors"
HIDDEN, WIDE, PROJECTION, LAYERS, PATCHES, PATCH = 1280, 5120, 1024, 32, 256, 14


def write(path: Path) -> Path:
    """Writes the file, in float16."""
    values = {
        "embeddings.class_embedding": draw(7, "class", (HIDDEN,)),
        "embeddings.patch_embedding.weight": draw(7, "patch", (HIDDEN, 3, PATCH, PATCH)),
        "pre_layrnorm.weight": torch.ones(HIDDEN),
    }
    zeros = {"embeddings.position_embedding.weight": (PATCHES + 1, HIDDEN), "pre_layrnorm.bias": (HIDDEN,)}
    zeros |= {f"post_layernorm.{part}": (HIDDEN,) for part in ("weight", "bias")}
    linears = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in ("q", "k", "v", "out")}
    linears |= {"mlp.fc1": (WIDE, HIDDEN), "mlp.fc2": (HIDDEN, WIDE)}
    for i, (name, shape) in itertools.product(range(LAYERS), linears.items()):
        zeros |= {f"encoder.layers.{i}.{name}.weight": shape, f"encoder.layers.{i}.{name}.bias": shape[:1]}
    for i, norm, part in itertools.product(range(LAYERS), (1, 2), ("weight", "bias")):
        zeros[f"encoder.layers.{i}.layer_norm{norm}.{part}"] = (HIDDEN,)
    shapes = {f"vision_model.{name}": tuple(value.shape) for name, value in values.items()}
    shapes |= {f"vision_model.{name}": shape for name, shape in zeros.items()}
    shapes["visual_projection.weight"] = (PROJECTION, HIDDEN)
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in values.values():
            file.write(value.half().numpy().tobytes())
        file.truncate(8 + len(text) + end)
    return path

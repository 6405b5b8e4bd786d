"""State dicts of Wan models on the meta device, so that full-size ones take no memory; and the messages that refuse
them."""

import pytest
import torch

from ...turbo_core.checkpoint.identify import identify
from ...turbo_core.checkpoint.layout import WanSpec, expected_shapes
from ...turbo_core.errors import CheckpointError
from . import checkpoints, lingbot

NAME = "some file.safetensors"


def meta(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def names(*keys):
    return meta(dict.fromkeys(keys, (8,)))


def spec(dim=256, ffn_dim=512, layers=3, in_channels=16, turbo=False, sla=False, **image):
    variant = {"variant": "LingBot-World" if "camera" in image else "I2V" if in_channels == 36 else "T2V"}
    return WanSpec(turbo, sla, dim, ffn_dim, layers, in_channels, text_width=4096, **variant | image)


def stock(**fields):
    return meta(expected_shapes(spec(**fields)))


def turbo(dim=256, ffn_dim=512, layers=3, in_channels=16, sla=True):
    """A checkpoint in upstream's names and shapes, which the test support lists, not the code under test."""
    return meta(checkpoints.shapes(dim, ffn_dim, layers, in_channels, sla))


def refusal(tensors, metadata=None):
    """The message for a refused file: one line that begins with the name of the file."""
    with pytest.raises(CheckpointError) as error:
        identify(NAME, tensors, metadata)
    text = str(error.value)
    assert text.startswith(NAME) and text.endswith(".") and "\n" not in text
    return text


def camera_model(control="cam", **sizes):
    """A camera model in the names and shapes that the test support lists."""
    tensors = meta(lingbot.shapes(control, **({"dim": 256, "ffn_dim": 512, "layers": 3} | sizes)))
    dim = sizes.get("dim", 256)
    return tensors | {"patch_embedding.weight": torch.empty(dim, 36, 1, 2, 2, device="meta")}


def without(tensors, *parts):
    return {key: tensor for key, tensor in tensors.items() if not any(part in key for part in parts)}

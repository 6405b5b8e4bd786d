"""The model object for a Wan file: ComfyUI's class for its variant, extended by ours."""

from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.ops
import torch

from ..checkpoint.layout import WanSpec
from .base_model import TurboWAN
from .camera_model import LingBotWAN
from .model import subclass_of


def model_of(config: Any, spec: WanSpec, source: Path) -> TurboWAN:
    """The model, with uninitialized weights, that ComfyUI's `config` (of `model_config_from_unet`) describes."""
    host: comfy.model_base.WAN21 = _host_model(config)
    model: TurboWAN = subclass_of(LingBotWAN if spec.camera else TurboWAN, type(host))(config, spec, source)
    model.image_to_video = getattr(host, "image_to_video", False)
    return model


def _host_model(config: Any) -> Any:
    """What ComfyUI makes of its config, without a network: only the config knows the class and its settings."""
    without_network = "disable_unet_model_creation"
    config.unet_config[without_network] = True
    try:
        return config.get_model({})
    finally:
        del config.unet_config[without_network]


class _ShapedOperations(comfy.ops.disable_weight_init):
    """Operations whose layers have tensors: linears and embeddings of ComfyUI have none while dynamic VRAM is on."""

    Linear, Embedding = torch.nn.Linear, torch.nn.Embedding


def network_shapes(model: TurboWAN) -> dict[str, tuple[int, ...]]:
    """Every tensor that the network of a model has, by its name in a file, with its shape before quantization."""
    options: dict[str, Any] = {"operations": _ShapedOperations, "device": torch.device("meta")}
    network = type(model.diffusion_model)(**model.model_config.unet_config, **options)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

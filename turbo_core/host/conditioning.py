"""What a model requires of its conditioning and of its latent. The guider checks before anything is loaded; the model
checks again, for stock samplers."""

from collections.abc import Mapping
from typing import Any

import torch

from ..camera.embed import CHANNELS
from ..checkpoint.layout import LATENT_CHANNELS, WanSpec
from ..checkpoint.variants import I2V, IMAGE, variant
from ..errors import TurboError

Conditioning = list[Any]  # ComfyUI's CONDITIONING: pairs of an embedding and a dictionary of options

# Keys of a condition, as ComfyUI names them.
TEXT_KEY = "cross_attn"
IMAGE_KEY = IMAGE  # from WanImageToVideo
CAMERA_KEY = "camera_conditions"  # from the camera nodes, ComfyUI's own too


def check_conditioning(spec: WanSpec, condition: Mapping[str, Any], latent: torch.Tensor | None = None) -> None:
    """Raises TurboError unless the text, image and camera in one condition suit the model and, if it is given, the
    latent [B, 16, frames, height, width]."""
    if latent is not None:
        check_latent(latent, spec.out_channels)
    shape = None if latent is None else latent.shape
    if not spec.variant:  # ComfyUI alone knows what it takes
        return
    _check_text(spec, condition.get(TEXT_KEY))
    for need in variant(spec.variant).needs:
        if condition.get(need.key) is None:
            raise TurboError(need.message)
    _check_image(spec, condition.get(IMAGE_KEY), shape)
    _check_camera(spec, condition.get(CAMERA_KEY), shape)


def check_latent(latent: torch.Tensor, channels: int = LATENT_CHANNELS) -> None:
    """Raises TurboError unless a latent is one tensor [B, channels, T, H, W]."""
    if latent.is_nested:
        raise TurboError("The latent holds several tensors (video with audio); Wan needs a plain video latent.")
    if latent.ndim != 5 or latent.shape[1] != channels:
        node = "Wan22ImageToVideoLatent"
        if channels == LATENT_CHANNELS:
            node = "EmptyHunyuanLatentVideo (text to video) or WanImageToVideo (image to video)"
        raise TurboError(
            f"The latent is {list(latent.shape)}, and this model needs a {channels}-channel video latent [batch, "
            f"{channels}, frames, height, width]: make it with {node}."
        )


def _check_text(spec: WanSpec, text: torch.Tensor | None) -> None:
    if text is None:
        raise TurboError("The conditioning holds no text: connect CLIP Text Encode with the umT5-XXL encoder.")
    if text.shape[-1] != spec.text_width:
        raise TurboError(
            f"The text conditioning is {text.shape[-1]} wide and this model takes {spec.text_width}: the prompt was "
            "encoded with another text encoder; load umt5_xxl with Load CLIP, type wan."
        )


def _check_image(spec: WanSpec, image: torch.Tensor | None, latent_shape: torch.Size | None) -> None:
    """`image` [batch, channels, frames, height, width]."""
    if not spec.takes_image or image is None:
        return
    # ComfyUI puts a mask of 4 channels before an image that leaves room for it, and cuts off channels only for models
    # with an image embedding.
    channels = spec.in_channels - spec.out_channels
    is_cut = spec.image_embedding and spec.variant == I2V
    if image.ndim != 5 or not (is_cut or image.shape[1] in (channels, channels - 4)):
        node = next(need.node for need in variant(spec.variant).needs if need.key == IMAGE_KEY)
        raise TurboError(
            f"The conditioning's image is {list(image.shape)}, which is for another kind of Wan model: pass the "
            f"conditioning through {node}."
        )
    if latent_shape is not None and image.shape[2] != latent_shape[2]:
        raise TurboError(
            f"The conditioning's image is for {image.shape[2] * 4 - 3} frames and the latent has "
            f"{latent_shape[2] * 4 - 3}: connect the latent of the node that made the conditioning."
        )


def _check_camera(spec: WanSpec, camera: torch.Tensor | None, latent_shape: torch.Size | None) -> None:
    """`camera` [batch, channels, frames, height, width] in the latent's size; no model requires one."""
    if camera is None or any(need.key == CAMERA_KEY for need in variant(spec.variant).needs):
        return
    control = spec.camera
    if not control:
        raise TurboError(
            "The conditioning has a camera and this model takes none: use a LingBot-World model, or take "
            "TurboDiffusionCameraCondition out."
        )
    controls = {channels: name for name, channels in CHANNELS.items()}
    shape = list(camera.shape)
    if camera.ndim != 5 or shape[1] not in controls:
        raise TurboError(
            f"The camera embedding is {shape}, which LingBot-World does not take: make it with "
            "TurboDiffusionCameraEmbed (ComfyUI's own "
            "WanCameraEmbedding is for Wan Fun Camera)."
        )
    if controls[shape[1]] != control:
        raise TurboError(
            f"The camera embedding is for {controls[shape[1]]} models and this one is {control}: set control to "
            f"{control} in "
            "TurboDiffusionCameraEmbed."
        )
    if latent_shape is not None and shape[2:] != list(latent_shape[2:]):
        (frames, height, width), (to_frames, to_height, to_width) = shape[2:], latent_shape[2:]
        raise TurboError(
            f"The camera is {width * 8}x{height * 8} with {frames * 4 - 3} frames and the video "
            f"{to_width * 8}x{to_height * 8} with "
            f"{to_frames * 4 - 3}: give both the same width and height, and connect the camera path's length to the "
            "video's."
        )

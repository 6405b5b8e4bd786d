"""Telling from its tensors what a file is, never from its name."""

import dataclasses
from collections.abc import Collection

import torch

from ..errors import CheckpointError
from .check import check_complete
from .comfy_quant import is_side_of, quantized_layers
from .keys import PATCH_EMBEDDING, has_linear_patch_embedding, strip_wrappers, to_comfyui
from .layout import CAMERA_EMBEDDING, CONTROLS, HEAD_DIM, WanSpec, expected_shapes, read_spec
from .metadata import check_config, check_metadata, recorded_as_turbo, recorded_training, stated_kind
from .packed import as_unpacked, flat_codes, packed_weights
from .variants import I2V, T2V, is_extra

# Axes of the tensors that sizes are read from, in ComfyUI's shapes
_AXES = {
    PATCH_EMBEDDING: 5,
    "text_embedding.0.weight": 2,
    "blocks.0.ffn.0.weight": 2,
    "head.modulation": 3,
    "head.head.weight": 2,
    "img_emb.emb_pos": 3,
    f"{CAMERA_EMBEDDING}.weight": 2,
}

# (part of a tensor name that only that kind of file has, what the file is, what to do with it), most specific first
_FOREIGN = (
    *(
        (fragment, "a LoRA", "apply it to a loaded model with LoraLoaderModelOnly")
        for fragment in (
            *("lora_A.", "lora_B.", "lora_down.", "lora_up.", ".lora.down.", ".lora.up.", "lora_unet_", "lycoris_"),
            *(".diff_b", ".lokr_w", ".hada_w", ".oft_blocks"),
        )
    ),
    ("vae.", "an all-in-one checkpoint", "load it with Load Checkpoint"),
    ("first_stage_model.", "an all-in-one checkpoint", "load it with Load Checkpoint"),
    ("vision_model.", "a CLIP vision model", "load it with Load CLIP Vision"),
    ("visual.", "a CLIP vision model", "load it with Load CLIP Vision"),
    ("SelfAttention.", "a text encoder", "move it to models/text_encoders and load it with Load CLIP, type wan"),
    ("text_model.", "a text encoder", "move it to models/text_encoders and load it with Load CLIP"),
    (
        "token_embedding.weight",
        "a text encoder",
        "use the umt5_xxl file repackaged for ComfyUI with Load CLIP, type wan",
    ),
    ("decoder.head.", "a VAE", "move it to models/vae and load it with Load VAE"),
    ("decoder.conv_in.", "a VAE", "move it to models/vae and load it with Load VAE"),
    ("condition_embedder.", "one in the Diffusers layout", "use the original TurboDiffusion or ComfyUI file"),
)


def identify(
    name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> tuple[WanSpec, dict[str, torch.Tensor]]:
    """The spec of a checkpoint and its tensors in ComfyUI's names and shapes, checked to be complete; 4-bit weights are
    their codes as flat bytes (see `packed`).

    `name` is used in messages only. Raises CheckpointError with one message for a file that is something else, a kind
    of Wan model that this pack does not run, or one whose tensors are missing, unexpected or wrongly shaped."""
    tensors = strip_wrappers(tensors)
    _refuse_foreign(name, tensors)
    metadata = metadata or {}
    check_metadata(name, metadata)
    turbo = recorded_as_turbo(metadata) or has_linear_patch_embedding(tensors)
    packed = packed_weights(name, tensors)
    tensors = flat_codes(to_comfyui(tensors), packed)
    whole = as_unpacked(tensors, packed)
    for key, axes in _AXES.items():
        if key in whole and (whole[key].ndim != axes or not whole[key].numel()):
            raise CheckpointError(
                f"{name} is not a Wan model that this node can read: {key} has the shape {list(whole[key].shape)}; "
                "use the original TurboDiffusion or ComfyUI file."
            )
    try:
        spec = read_spec(whole, turbo, four_bit=next(iter(packed.values())).kind if packed else "")
    except KeyError as error:
        raise CheckpointError(
            f"{name} looks like part of a Wan model: {error.args[0]} is missing; the download or the "
            "conversion is incomplete, get the file again."
        ) from None
    _refuse_impossible(name, spec, whole)
    if spec.variant in (T2V, I2V) and stated_kind(metadata):
        spec = dataclasses.replace(spec, variant="")
    expected = expected_shapes(spec)
    quantized = quantized_layers(whole)
    extra = {
        key: tuple(tensor.shape)
        for key, tensor in whole.items()
        if key not in expected and is_extra(key, whole, spec.variant) and not is_side_of(key, quantized)
    }
    check_complete(name, spec, tensors, packed, expected | extra)
    check_config(name, metadata, spec)
    return dataclasses.replace(spec, trained_as=recorded_training(metadata)), tensors


def _refuse_foreign(name: str, tensors: Collection[str]) -> None:
    if "head.modulation" in tensors:
        return
    for fragment, kind, advice in _FOREIGN:
        if any(fragment in key if not fragment.endswith("_") else key.startswith(fragment) for key in tensors):
            raise CheckpointError(f"{name} looks like {kind}, not a Wan diffusion model; {advice}.")
    if any(key.startswith("blocks.") for key in tensors) and PATCH_EMBEDDING in tensors:
        raise CheckpointError(
            f"{name} looks like part of a Wan model: head.modulation is missing; the download or the "
            "conversion is incomplete, get the file again."
        )
    raise CheckpointError(
        f"{name} is not a Wan diffusion model (it begins with {next(iter(tensors))!r}); load it with the "
        "node made for it, for instance Load Diffusion Model."
    )


def _refuse_impossible(name: str, spec: WanSpec, tensors: dict[str, torch.Tensor]) -> None:
    if spec.camera == "other":
        width = tensors[f"{CAMERA_EMBEDDING}.weight"].shape[-1]
        known_widths = " or ".join(f"{size} ({control})" for size, control in CONTROLS.items())
        raise CheckpointError(
            f"{name} has a camera control of {width} channels, and LingBot-World has {known_widths}; use the "
            "original file."
        )
    if spec.camera and not spec.takes_image:
        raise CheckpointError(
            f"{name} is a LingBot-World model with {spec.in_channels} input channels, none of them for an image; use "
            "the original file."
        )
    if spec.dim % HEAD_DIM:
        raise CheckpointError(
            f"{name} is {spec.dim} wide, which is not a multiple of {HEAD_DIM}, the head_dim of Wan; use the "
            "original file."
        )

"""The kinds of Wan model, told apart by their tensors.

A variant adds tensors to the trunk that all Wan models share, or takes other channels. Its network and its model class
are ComfyUI's, which knows it by the same tensors (LingBot-World's are those of I2V, extended). To add one: an entry in
VARIANTS, and a case in tests/turbo_core/host/test_variants.py."""

import dataclasses
import re
from collections.abc import Callable, Collection

T2V, I2V, LINGBOT = "T2V", "I2V", "LingBot-World"


@dataclasses.dataclass(frozen=True)
class Need:
    """A key of the conditioning that a variant cannot do without, what is missing without it, and the node that gives
    it."""

    key: str
    what: str
    node: str

    @property
    def message(self) -> str:
        return f"{self.what}: pass the conditioning through {self.node}."


@dataclasses.dataclass(frozen=True)
class Variant:
    """`mark`: a tensor that only this variant has; without one, `fits` says whether a model with these input channels,
    output channels and image embedding is one. `extra`: how the names of its tensors beside the trunk begin. `needs`:
    what its conditioning must hold beside the text."""

    name: str
    mark: str = ""
    fits: Callable[[int, int, bool], bool] | None = None
    extra: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()

    def is_one(self, names: Collection[str], in_channels: int, out_channels: int, image_embedding: bool) -> bool:
        """Whether a model with these tensors and sizes is of this variant."""
        return self.mark in names if self.fits is None else self.fits(in_channels, out_channels, image_embedding)


IMAGE = "concat_latent_image"  # ComfyUI's key of what is put beside the video's channels
_START_IMAGE = Need(
    IMAGE,
    "This is an image-to-video model and the conditioning holds no image",
    "WanImageToVideo with a start_image",
)
_CONTROL = Need(
    IMAGE,
    "This is a Fun Control model and the conditioning holds no control",
    "WanFunControlToVideo (Wan 2.1) or Wan22FunControlToVideo with a control_video",
)
_CAMERA_IMAGE = Need(
    IMAGE, "This is a Fun Camera model and the conditioning holds no image", "WanCameraImageToVideo with a start_image"
)
_CAMERA = Need(
    "camera_conditions",
    "This is a Fun Camera model and the conditioning holds no camera",
    "WanCameraImageToVideo with the camera_embedding of WanCameraEmbedding",
)
_CHARACTER = Need(
    IMAGE,
    "This is an Animate model and the conditioning holds no character",
    "WanAnimateToVideo with a reference_image",
)

# The first that fits; those with a mark first, as ComfyUI tells them apart.
VARIANTS = (
    Variant("VACE", "vace_patch_embedding.weight", extra=("vace_",)),
    Variant("Fun Camera", "control_adapter.conv.weight", extra=("control_adapter.",), needs=(_CAMERA_IMAGE, _CAMERA)),
    # Not of ComfyUI: its network is extended in host/camera_model.py. Which control it takes, cam or act, is read from
    # the width of the marking tensor; without a camera it moves freely.
    Variant(LINGBOT, "patch_embedding_wancamctrl.weight", needs=(_START_IMAGE,)),
    Variant(
        "S2V",
        "casual_audio_encoder.encoder.final_linear.weight",
        extra=("casual_audio_encoder.", "trainable_cond_mask.", "cond_encoder.", "audio_injector.", "frame_packer."),
    ),
    Variant(
        "Animate",
        "face_adapter.fuser_blocks.0.k_norm.weight",
        extra=("face_adapter.", "motion_encoder.", "face_encoder.", "pose_patch_embedding."),
        needs=(_CHARACTER,),
    ),
    Variant(
        "Fun Control",
        fits=lambda inputs, outputs, image: inputs == (48 if image else 52) and outputs == 16,
        extra=("ref_conv.",),
        needs=(_CONTROL,),
    ),
    Variant("TI2V", fits=lambda inputs, outputs, image: inputs == outputs == 48 and not image),
    Variant(I2V, fits=lambda inputs, outputs, image: inputs == 36 and outputs == 16, needs=(_START_IMAGE,)),
    Variant(T2V, fits=lambda inputs, outputs, image: inputs == outputs == 16 and not image),
)
_BY_NAME = {variant.name: variant for variant in VARIANTS}

_NUMBER = re.compile(r"\.\d{4}")  # the number of a layer that no model has: ComfyUI would build that many layers

# Tensors of Wan models that ComfyUI knows and this pack has no entry for: they run as ComfyUI runs them.
_COMFYUI_ONLY = (
    "audio_proj.",  # HuMo
    "patch_embedding_mask.",  # SCAIL-2
    "patch_embedding_pose.",  # SCAIL
    "patch_embedding_global.",  # WanDancer
)


def variant_name(names: Collection[str], in_channels: int, out_channels: int, image_embedding: bool) -> str:
    """The name of the variant with these tensors and sizes; empty for one that is not in VARIANTS."""
    if any(name.startswith(_COMFYUI_ONLY) for name in names):
        return ""
    sizes = (in_channels, out_channels, image_embedding)
    return next((entry.name for entry in VARIANTS if entry.is_one(names, *sizes)), "")


def variant(name: str) -> Variant:
    """The entry of a name, which must not be empty."""
    return _BY_NAME[name]


def is_extra(tensor: str, names: Collection[str], variant_name: str) -> bool:
    """Whether a tensor beside the trunk may belong to a model with these names: one of its variant, or any of a model
    that only ComfyUI knows."""
    if _NUMBER.search(tensor):
        return False
    if not variant_name:
        return any(name.startswith(_COMFYUI_ONLY) for name in names)
    return tensor.startswith(variant(variant_name).extra)

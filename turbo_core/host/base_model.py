"""ComfyUI's Wan base model, with the checks a user needs and the timestep a TurboWan network was trained on."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_base
import torch

from ...kernels import NoBackendError, check_sparse_attention, counting
from ..camera.embed import CHANNELS
from ..checkpoint.layout import LATENT_CHANNELS, PROJ_L, WanSpec, expected_shapes
from ..errors import TurboError
from ..record import RunRecord
from ..sampling.schedule import in_first_steps
from .model import TurboWanModel
from .model_sampling import RCMSampling, rcm_settings
from .saving import check_side_paths

IMAGE_KEY = "concat_latent_image"  # in conditioning; where ComfyUI's WanImageToVideo puts its latent
CAMERA_KEY = "camera_conditions"  # in conditioning; where ComfyUI's own camera nodes put theirs
UNUSED_OVERRIDE = "attention override not used"  # in `TurboWAN.calls`
OVERRIDING_NODES = "Model Sparse Attention, Model Attention Backend"

logger = logging.getLogger("turbodiffusion")


class TurboWAN(comfy.model_base.WAN21):
    """A Wan model that knows its `spec`. It behaves as WAN21 under every stock node.

    `calls` counts what its last run (or, without a TurboDiffusion guider, its runs so far) did: passes through the network,
    dense self-attention, every operator of `kernels` by name, the blocks' linears that were not int8, and sparse self-attention for
    which another node had set another attention (UNUSED_OVERRIDE). `last_run` is the record of that run, if a TurboDiffusion guider ran it; `source` the file whose pages the weights are mapped from."""

    network_class = TurboWanModel

    def __init__(self, model_config, spec: WanSpec, source: Path, device=None):
        few_step = spec.turbo and not spec.camera
        if few_step:  # a copy, since ComfyUI's class holds the original
            model_config.sampling_settings = rcm_settings(model_config.sampling_settings, spec)
        # WAN21's own constructor fixes the network class, so it is skipped.
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=self.network_class
        )
        if few_step:
            self.model_sampling = RCMSampling(model_config)
        self.image_to_video = spec.image_embedding
        self.spec, self.source = spec, source
        self.dense_steps = 0  # at the start of each run; nodes change it per model clone by an object patch
        self.calls: Counter[str] = Counter()
        self.last_run: RunRecord | None = None
        names = expected_shapes(spec)
        # Not the camera's, which run only with one, and once for each chunk of frames.
        others = (PROJ_L, ".cam_")
        self._linears = sum(
            len(names[k]) == 2 and k.startswith("blocks.") and not any(name in k for name in others) for k in names
        )

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options={}, **kwargs):  # noqa: B006
        before = self.calls["int8 linear"]
        with self._attention_of_step(t, transformer_options), counting(self.calls):
            self._check_attention(x.device)
            self.calls["network"] += 1
            dense = sum(block.self_attn.sla is None for block in self.diffusion_model.blocks)
            self.calls["dense attention"] += dense
            if transformer_options.get("optimized_attention_override") is not None:
                self._count_unused_override(len(self.diffusion_model.blocks) - dense)
            velocity = super()._apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        self.calls["float linear"] += max(0, self._linears - (self.calls["int8 linear"] - before))
        return velocity

    @contextmanager
    def _attention_of_step(self, sigma: torch.Tensor, transformer_options: dict) -> Iterator[None]:
        """Within the block every layer's attention is dense if this call belongs to the run's first `dense_steps` steps.

        Decided here, outside of what is compiled, and told to the layers by the attribute that the SLA node patches:
        torch.compile guards it, and does not guard what is in `transformer_options`."""
        levels = transformer_options.get("sample_sigmas")
        if not self.dense_steps or levels is None or not in_first_steps(sigma, levels, self.dense_steps):
            yield
            return
        layers = [block.self_attn for block in self.diffusion_model.blocks]
        settings = [layer.sla for layer in layers]
        try:
            for layer in layers:
                layer.sla = None
            yield
        finally:
            for layer, setting in zip(layers, settings, strict=True):
                layer.sla = setting

    def _count_unused_override(self, blocks: int) -> None:
        """Counts the blocks of a call that run sparse-linear attention although another node set an attention for the model, which
        reaches dense attention only; the first time logs what to do."""
        if not blocks:
            return
        if not self.calls[UNUSED_OVERRIDE]:
            logger.warning(
                "%s: another node sets the model's attention (%s), which cannot take effect in the %d of %d blocks whose self-attention "
                "is TurboDiffusion's sparse one: take that node out, or choose dense in TurboDiffusion SLA.",
                self.source.name,
                OVERRIDING_NODES,
                blocks,
                len(self.diffusion_model.blocks),
            )
        self.calls[UNUSED_OVERRIDE] += blocks

    def _check_attention(self, device: torch.device) -> None:
        """Raises TurboError if a layer's sparse attention cannot run on a device. Asked here, outside of what is compiled:
        dense attention computes something else, so it is a choice of the user."""
        settings = (block.self_attn.sla for block in self.diffusion_model.blocks)
        for pv in {each.pv for each in settings if each is not None}:
            try:
                check_sparse_attention(device, pv)
            except NoBackendError as error:
                raise TurboError(
                    f"Sparse attention cannot run on {device} ({error.reasons}): set mode to dense in TurboDiffusion SLA."
                ) from error

    def process_timestep(self, timestep: torch.Tensor, **kwargs) -> torch.Tensor:
        """1000 * sigma, rounded to bfloat16 for a TurboWan network, which saw no other values in training."""
        return timestep.to(torch.bfloat16).float() if self.spec.turbo else timestep

    def state_dict_for_saving(self, *args, **kwargs):
        """As ComfyUI's. Raises TurboError as `check_side_paths`, also for a patcher that is not from our loader."""
        check_side_paths(self.diffusion_model)
        return super().state_dict_for_saving(*args, **kwargs)

    def extra_conds(self, **kwargs):
        check_latent_shape(kwargs["noise"].shape)
        check_text(self.spec, kwargs.get("cross_attn"))
        check_image(self.spec, kwargs.get(IMAGE_KEY), kwargs["noise"].shape)
        check_camera(self.spec, kwargs.get(CAMERA_KEY), kwargs["noise"].shape)
        return super().extra_conds(**kwargs)


def check_latent_shape(shape: torch.Size) -> None:
    """Raises TurboError unless a latent is [B, 16, T, H, W]."""
    if len(shape) != 5 or shape[1] != LATENT_CHANNELS:
        raise TurboError(
            f"The latent is {list(shape)}, and Wan needs a 16-channel video latent [batch, 16, frames, height, width]: "
            "make it with EmptyHunyuanLatentVideo (text to video) or WanImageToVideo (image to video)."
        )


def check_text(spec: WanSpec, context: torch.Tensor | None) -> None:
    """Raises TurboError unless the text conditioning is there and of the width the model was trained on."""
    if context is None:
        raise TurboError("The conditioning holds no text: connect CLIP Text Encode with the umT5-XXL encoder.")
    if context.shape[-1] != spec.text_width:
        raise TurboError(
            f"The text conditioning is {context.shape[-1]} wide and this model takes {spec.text_width}: the prompt was "
            "encoded with another text encoder; load umt5_xxl with Load CLIP, type wan."
        )


def check_image(spec: WanSpec, image: torch.Tensor | None, latent_shape: torch.Size | None = None) -> None:
    """Raises TurboError for an image-to-video model whose conditioning holds no image [batch, channels, frames, height, width], or one
    that fits neither the model nor a latent [B, 16, frames, height, width]."""
    if not spec.takes_image:
        return
    if image is None:
        raise TurboError(
            "This is an image-to-video model and the conditioning holds no image: pass the conditioning through "
            "WanImageToVideo with a start_image."
        )
    # ComfyUI puts a mask of 4 channels before an image that leaves room for it, and cuts off channels only for models with an
    # image embedding.
    channels = spec.in_channels - LATENT_CHANNELS
    if image.ndim != 5 or not (spec.image_embedding or image.shape[1] in (channels, channels - 4)):
        raise TurboError(
            f"The conditioning's image is {list(image.shape)}, which is for another kind of Wan model: pass the conditioning through "
            "WanImageToVideo."
        )
    if latent_shape is not None and image.shape[2] != latent_shape[2]:
        raise TurboError(
            f"The conditioning's image is for {image.shape[2] * 4 - 3} frames and the latent has {latent_shape[2] * 4 - 3}: connect the "
            "latent of the same WanImageToVideo node."
        )


def check_camera(spec: WanSpec, camera: torch.Tensor | None, latent_shape: torch.Size | None = None) -> None:
    """Raises TurboError unless a camera embedding, if there is one, fits the model and a latent [B, 16, frames, height, width]."""
    if camera is None:
        return
    control = spec.camera
    if not control:
        raise TurboError(
            "The conditioning has a camera and this model takes none: use a LingBot-World model, or take TurboDiffusionCameraCondition out."
        )
    kinds = {channels: kind for kind, channels in CHANNELS.items()}
    shape = list(camera.shape)
    if camera.ndim != 5 or shape[1] not in kinds:
        raise TurboError(
            f"The camera embedding is {shape}, which LingBot-World does not take: make it with TurboDiffusionCameraEmbed (ComfyUI's own "
            "WanCameraEmbedding is for Wan Fun Camera)."
        )
    if kinds[shape[1]] != control:
        raise TurboError(
            f"The camera embedding is for {kinds[shape[1]]} models and this one is {control}: set control to {control} in "
            "TurboDiffusionCameraEmbed."
        )
    if latent_shape is not None and shape[2:] != list(latent_shape[2:]):
        (frames, height, width), (to_frames, to_height, to_width) = shape[2:], latent_shape[2:]
        raise TurboError(
            f"The camera is {width * 8}x{height * 8} with {frames * 4 - 3} frames and the video {to_width * 8}x{to_height * 8} with "
            f"{to_frames * 4 - 3}: give both the same width and height, and connect the camera path's length to the video's."
        )


def check_experts_match(high: WanSpec, low: WanSpec) -> None:
    """Raises TurboError unless two experts can share one run: same task, same size, same text encoder."""
    for what, a, b in (
        ("task", high.task, low.task),
        ("input channels", high.in_channels, low.in_channels),
        ("width", high.dim, low.dim),
        ("number of layers", high.layers, low.layers),
        ("text width", high.text_width, low.text_width),
        ("camera control", high.camera, low.camera),
    ):
        if a != b:
            raise TurboError(
                f"The two experts do not belong together, their {what} differs (high: {high.describe()}, low: "
                f"{low.describe()}): load the -high and the -low file of one model."
            )

"""Replacements for nodes of older TurboDiffusion packs (replacements.py): each expands to current nodes."""

import logging
from typing import Any

import folder_paths
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..turbo_core.errors import TurboError
from .loader import CATEGORY

logger = logging.getLogger("turbodiffusion")

# A link in a prompt, [node id, output slot]. raw_link inputs receive it instead of the value it carries.
Link = list[Any]

_ATTENTION = {"original": "dense", "sla": "sla", "sagesla": "sagesla"}
# (width, height) by the resolution and aspect names of those packs; some differ from current sizes of the same name.
_SIZES = {
    "480": {"16:9": (768, 432), "9:16": (432, 768), "4:3": (640, 480), "3:4": (480, 640), "1:1": (480, 480)},
    "480p": {"16:9": (832, 480), "9:16": (480, 832), "4:3": (640, 480), "3:4": (480, 640), "1:1": (640, 640)},
    "512": {"16:9": (640, 384), "9:16": (384, 640), "4:3": (640, 512), "3:4": (512, 640), "1:1": (512, 512)},
    "720": {"16:9": (1280, 704), "9:16": (704, 1280), "4:3": (960, 704), "3:4": (704, 960), "1:1": (960, 960)},
    "720p": {"16:9": (1280, 720), "9:16": (720, 1280), "4:3": (960, 720), "3:4": (720, 960), "1:1": (960, 960)},
}
_CUSTOM = "custom"
_ASPECTS = ["16:9", "9:16", "4:3", "3:4", "1:1"]
_FOLDER = "turbodiffusion_videos"


def _schema(
    name: str, title: str, description: str, inputs: list[io.Input], outputs: list[io.Output], **more: Any
) -> io.Schema:
    return io.Schema(
        node_id=f"TurboDiffusionLegacy{name}",
        display_name=f"TurboDiffusion {title} (old workflows)",
        category=CATEGORY,
        description=description,
        search_aliases=["old workflow", "legacy", "TurboWan"],
        inputs=inputs,
        outputs=outputs,
        enable_expand=True,
        is_deprecated=True,
        **more,
    )


def _link(kind: type[io.ComfyTypeIO], name: str, tooltip: str, **more: Any) -> io.Input:
    """An input whose link, not its value, goes into the new graph."""
    return kind.Input(name, tooltip=tooltip, raw_link=True, **more)


def _run_inputs(
    sizes: list[str], length: int, resolution: str, sigma_max: float, boundary: list[io.Input]
) -> list[io.Input]:
    return [
        io.Int.Input("num_frames", default=length, min=1, max=241, step=4, tooltip="The number of frames, 4n+1."),
        io.Int.Input("num_steps", default=4, min=1, max=4, tooltip="The number of sampling steps."),
        io.Combo.Input("resolution", options=sizes, default=resolution, tooltip="A size, by its name in the old pack."),
        io.Combo.Input("aspect_ratio", options=_ASPECTS, default="16:9", tooltip="The aspect ratio, width to height."),
        *boundary,
        io.Float.Input(
            "sigma_max", default=sigma_max, min=1.0, max=1000.0, tooltip="Where the schedule starts, above 14.2."
        ),
        io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=io.ControlAfterGenerate.fixed),
        io.Boolean.Input("use_ode", default=False, tooltip="On: mode ode. Off: mode sde."),
    ]


def _video(graph: GraphBuilder, vae: Link, use_ode: bool, **inputs: Any) -> io.NodeOutput:
    """The frames of a run, with noise drawn on the GPU as in those packs. `inputs` are the remaining inputs of
    TurboDiffusion Sample."""
    mode = "ode" if use_ode else "sde"
    sampled = graph.node("TurboDiffusionSample", mode=mode, noise_device="gpu", **inputs)
    frames = graph.node("TurboDiffusionVAEDecode", samples=sampled.out(0), vae=vae).out(0)
    return io.NodeOutput(frames, expand=graph.finalize())


class TurboDiffusionLegacyLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "Loader",
            "Loader",
            "Replaces TurboWanModelLoader: TurboDiffusion Loader and TurboDiffusion SLA.",
            [
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="A file in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "attention_type", options=list(_ATTENTION), default="sla", tooltip="original is now called dense."
                ),
                io.Float.Input(
                    "sla_topk",
                    default=0.1,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Top-k: the share of key blocks attended to.",
                ),
            ],
            [io.Model.Output()],
        )

    @classmethod
    def execute(cls, model_name: str, attention_type: str, sla_topk: float) -> io.NodeOutput:
        graph = GraphBuilder()
        model = graph.node("TurboDiffusionLoader", model_name=model_name, dtype="auto")
        changed = graph.node(
            "TurboDiffusionSLA",
            model=model.out(0),
            mode=_ATTENTION[attention_type],
            topk=sla_topk,
            dense_blocks="",
            allow_untrained=False,
        )
        return io.NodeOutput(changed.out(0), expand=graph.finalize())


class TurboDiffusionLegacyI2V(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        boundary = io.Float.Input(
            "boundary",
            default=0.9,
            min=0.0,
            max=1.0,
            step=0.1,
            tooltip="The sigma (noise level) below which the low expert runs.",
        )
        return _schema(
            "I2V",
            "I2V Sampler",
            "Replaces TurboDiffusionI2VSampler: image, latent, TurboDiffusion Sample and VAE Decode in one.",
            [
                _link(io.Model, "high_noise_model", "The high-noise expert."),
                _link(io.Model, "low_noise_model", "The low-noise expert.", lazy=True),
                _link(io.Conditioning, "conditioning", "The prompt."),
                _link(io.Vae, "vae", "The VAE of Wan 2.1."),
                _link(io.Image, "image", "The first frame; its center is used where the aspects differ."),
                *_run_inputs([*_SIZES, _CUSTOM], 77, "480", 200.0, [boundary]),
                io.Int.Input(
                    "width", default=480, min=64, max=2048, step=16, tooltip="The width of resolution custom."
                ),
                io.Int.Input(
                    "height", default=480, min=64, max=2048, step=16, tooltip="The height of resolution custom."
                ),
            ],
            [io.Image.Output(display_name="frames")],
        )

    @classmethod
    def execute(
        cls,
        high_noise_model: Link,
        low_noise_model: Link,
        conditioning: Link,
        vae: Link,
        image: Link,
        num_frames: int,
        num_steps: int,
        resolution: str,
        aspect_ratio: str,
        boundary: float,
        sigma_max: float,
        seed: int,
        use_ode: bool,
        width: int,
        height: int,
    ) -> io.NodeOutput:
        if resolution == _CUSTOM:
            size = {"width": round(width / 16) * 16, "height": round(height / 16) * 16}
        else:
            size = dict(zip(("width", "height"), _SIZES[resolution][aspect_ratio], strict=True))
        graph = GraphBuilder()
        first = graph.node("ImageFromBatch", image=image, batch_index=0, length=1).out(0)
        fitted = graph.node("ImageScale", image=first, upscale_method="lanczos", crop="center", **size).out(0)
        start = graph.node(
            "WanImageToVideo",
            positive=conditioning,
            negative=conditioning,
            vae=vae,
            length=num_frames,
            batch_size=1,
            start_image=fitted,
            **size,
        )
        return _video(
            graph,
            vae,
            use_ode,
            high=high_noise_model,
            low=low_noise_model,
            positive=start.out(0),
            latent=start.out(2),
            seed=seed,
            steps=num_steps,
            sigma_max=sigma_max,
            boundary=max(boundary, 0.001),
        )


class TurboDiffusionLegacyT2V(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "T2V",
            "T2V Sampler",
            "Replaces TurboDiffusionT2VSampler: prompt, latent, TurboDiffusion Sample and VAE Decode in one.",
            [
                _link(io.Model, "model", "The model."),
                io.String.Input("prompt", multiline=True, default="", tooltip="The prompt, for text_encoder."),
                _link(io.Vae, "vae", "The VAE of Wan 2.1."),
                *_run_inputs(list(_SIZES), 81, "480p", 80.0, []),
                _link(io.Conditioning, "conditioning", "Used when the prompt is empty.", optional=True),
                _link(io.Clip, "text_encoder", "umT5-XXL from Load CLIP, type wan.", optional=True),
            ],
            [io.Image.Output(display_name="frames")],
        )

    @classmethod
    def execute(
        cls,
        model: Link,
        prompt: str,
        vae: Link,
        num_frames: int,
        num_steps: int,
        resolution: str,
        aspect_ratio: str,
        sigma_max: float,
        seed: int,
        use_ode: bool,
        conditioning: Link | None = None,
        text_encoder: Link | None = None,
    ) -> io.NodeOutput:
        graph = GraphBuilder()
        if prompt.strip() and text_encoder is not None:
            conditioning = graph.node("CLIPTextEncode", clip=text_encoder, text=prompt).out(0)
        elif prompt.strip() or conditioning is None:
            raise TurboError(
                "There is no text: connect text_encoder to Load CLIP (type wan), or clear the prompt and connect "
                "conditioning."
            )
        width, height = _SIZES[resolution][aspect_ratio]
        latent = graph.node("EmptyHunyuanLatentVideo", width=width, height=height, length=num_frames, batch_size=1)
        return _video(
            graph,
            vae,
            use_ode,
            high=model,
            positive=conditioning,
            latent=latent.out(0),
            seed=seed,
            steps=num_steps,
            sigma_max=sigma_max,
            boundary=0.9,
        )


class TurboDiffusionLegacySaveVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "SaveVideo",
            "Save Video",
            "Replaces TurboDiffusionSaveVideo: Create Video and Save Video.",
            [
                _link(io.Image, "frames", "The frames."),
                io.String.Input("filename_prefix", default="turbodiffusion", tooltip="The start of the file name."),
                io.Int.Input(
                    "fps", default=24, min=1, max=60, tooltip="Frames a second; the models are trained at 16."
                ),
                io.Combo.Input(
                    "format",
                    options=["mp4", "gif", "webm"],
                    default="mp4",
                    tooltip="The file format. gif writes an animated WEBP.",
                ),
            ],
            [io.Image.Output(display_name="frames")],  # ComfyUI expands only nodes that have an output
            is_output_node=True,
        )

    @classmethod
    def execute(cls, frames: Link, filename_prefix: str, fps: int, format: str) -> io.NodeOutput:
        graph = GraphBuilder()
        video = {"images": frames, "fps": fps}
        name = {"filename_prefix": f"{_FOLDER}/{filename_prefix}"}
        if format == "mp4":
            graph.node("SaveVideo", video=graph.node("CreateVideo", **video).out(0), **name, format="mp4", codec="auto")
        elif format == "webm":
            graph.node("SaveWEBM", **video, **name, codec="vp9", crf=32)
        else:
            logger.warning("ComfyUI does not write GIF: the video is saved as an animated WEBP.")
            graph.node("SaveAnimatedWEBP", **video, **name, lossless=False, quality=80, method="default")
        return io.NodeOutput(frames, expand=graph.finalize())

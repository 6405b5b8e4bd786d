"""Decoding video latents with bounded memory, to images or to a video."""

from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.sd import VAE
from comfy_api.latest import InputImpl, Types, io

from ..turbo_core.host.decode import check_decodes_wan, decode_images, latent_of
from ..turbo_core.host.decode_video import decode_video
from ..turbo_core.host.kernels_ahead import compile_decoder_kernels
from ..turbo_core.record import timed
from ..turbo_core.video import FPS, LazyImages, frame_rate
from .loader import CATEGORY


def _samples() -> io.Latent.Input:
    return io.Latent.Input("samples", lazy=True, tooltip="The latent of a video.")


def _vae() -> io.Vae.Input:
    return io.Vae.Input(
        "vae",
        tooltip="The VAE of Wan 2.1 or of Wan 2.2 5B, or a small one for a draft (lighttaew2_1, lighttaew2_2). For any "
        "other VAE this is ComfyUI's VAE Decode.",
    )


class _Decode(io.ComfyNode):
    """Has the VAE evaluated first, so that one of another model is refused before a step is sampled, and its kernels
    are compiled meanwhile."""

    @classmethod
    def check_lazy_status(cls, vae: VAE, samples: io.Latent.Type | None = None, **_: Any) -> list[str]:
        if samples is not None:
            return []
        if _kind_of_source(cls.hidden.prompt, cls.hidden.unique_id, "samples") == "TurboDiffusionSample":
            check_decodes_wan(vae)
        compile_decoder_kernels(vae)
        return ["samples"]


def _kind_of_source(prompt: dict[str, Any] | None, node_id: str | None, name: str) -> str | None:
    """The class of the node that an input is linked to; None where the prompt does not say."""
    link = (prompt or {}).get(str(node_id), {}).get("inputs", {}).get(name)
    return (prompt or {}).get(str(link[0]), {}).get("class_type") if isinstance(link, list) else None


class TurboDiffusionVAEDecode(_Decode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionVAEDecode",
            display_name="TurboDiffusion VAE Decode",
            category=CATEGORY,
            description="Decodes a Wan video chunk by chunk: what VAE Decode makes, with the memory of one chunk and "
            "of the frames.",
            search_aliases=["decode latent", "latent to image", "VAE decode tiled", "low memory decode"],
            inputs=[_samples(), _vae()],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=[io.Image.Output(tooltip="The frames.")],
        )

    @classmethod
    def execute(cls, samples: io.Latent.Type, vae: VAE) -> io.NodeOutput:
        with timed(samples, "decode"):
            images = decode_images(vae, latent_of(vae, samples))
        return io.NodeOutput(images)


class TurboDiffusionVAEDecodeVideo(_Decode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionVAEDecodeVideo",
            display_name="TurboDiffusion VAE Decode Video",
            category=CATEGORY,
            essentials_category="Video Generation",
            description="Decodes a Wan video chunk by chunk into an mp4, for Save Video: the same file as with "
            "TurboDiffusion VAE Decode and Create Video, without all frames in memory.",
            search_aliases=["decode latent", "latent to video", "create video", "low memory decode"],
            inputs=[
                _samples(),
                _vae(),
                io.Float.Input(
                    "fps",
                    default=16.0,
                    min=FPS[0],
                    max=FPS[1],
                    step=1.0,
                    tooltip="Frames a second. Wan 2.1 and A14B: 16.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            outputs=[io.Video.Output(tooltip="The mp4, for Save Video.")],
        )

    @classmethod
    def execute(cls, samples: io.Latent.Type, vae: VAE, fps: float) -> io.NodeOutput:
        rate = frame_rate(fps)
        with timed(samples, "decode"):
            latent, folder = latent_of(vae, samples), Path(folder_paths.get_temp_directory())
            path, frames = decode_video(vae, latent, folder, partial(encode_mp4, frame_rate=rate))
        return io.NodeOutput(DecodedVideo(path, frames, rate))


def stock_video(images: LazyImages, frame_rate: Fraction) -> InputImpl.VideoFromComponents:
    """The video that Create Video makes of these images. ComfyUI encodes it, so settings, colors and tags are the
    host's."""
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=frame_rate))


def encode_mp4(images: LazyImages, path: Path, frame_rate: Fraction) -> None:
    """Writes the file that Save Video writes by default: H.264 in ComfyUI's default quality."""
    kind = dict(format=Types.VideoContainer.MP4, codec=Types.VideoCodec.H264)
    stock_video(images, frame_rate).save_to(str(path), **kind)


class DecodedVideo(InputImpl.VideoFromFile):
    """A decoded video: the mp4 at `path`, and the frames it was encoded from, [count, height, width, 3] uint8.

    Saving with the settings of the mp4 copies its stream. With other settings ComfyUI encodes the frames, so nothing is
    lost twice. The mp4 stays in ComfyUI's temp folder, which ComfyUI empties when it starts, because other VIDEO
    objects may refer to its path.
    """

    def __init__(self, path: Path, frames: torch.Tensor, frame_rate: Fraction) -> None:
        super().__init__(str(path))
        self.lazy_images, self.frame_rate = LazyImages(frames), frame_rate

    def get_components(self) -> Types.VideoComponents:
        """All frames in float32, 0 to 1, as they were before H.264."""
        return Types.VideoComponents(images=self.lazy_images[:], frame_rate=self.frame_rate)

    def save_to(
        self,
        path: str | BytesIO,
        format: Types.VideoContainer = Types.VideoContainer.AUTO,
        codec: Types.VideoCodec = Types.VideoCodec.AUTO,
        metadata: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """As VideoInput.save_to. `options` (crf, bit_depth, color_space, preset, and those of later hosts) go to the
        host's encoder."""
        copied = (
            all(value is None for value in options.values())
            and codec in (Types.VideoCodec.AUTO, Types.VideoCodec.H264)
            and format in (Types.VideoContainer.AUTO, Types.VideoContainer.MP4)
            and (isinstance(path, BytesIO) or str(path).lower().endswith(".mp4"))
        )
        if copied:
            # With AUTO ComfyUI writes a buffer in the first container that ffmpeg names for the source, which is mov.
            save, format = super().save_to, Types.VideoContainer.MP4
        else:
            save = stock_video(self.lazy_images, self.frame_rate).save_to
        save(path, format=format, codec=codec, metadata=metadata, **options)

"""Decoding video latents with bounded memory, to images or to a video."""

from fractions import Fraction
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import InputImpl, Types, io

from ..turbo_core.host.decode import decode_images, latent_of
from ..turbo_core.host.decode_video import decode_video
from ..turbo_core.record import timed
from ..turbo_core.video import Mp4Writer
from .loader import CATEGORY


def _samples() -> io.Latent.Input:
    return io.Latent.Input("samples", tooltip="The latent of a video.")


def _vae() -> io.Vae.Input:
    return io.Vae.Input(
        "vae", tooltip="The VAE of Wan 2.1, or of Wan 2.2 5B. Any other is decoded as ComfyUI's VAE Decode does."
    )


class TurboDiffusionVAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionVAEDecode",
            display_name="TurboDiffusion VAE Decode",
            category=CATEGORY,
            description="Decodes a Wan video chunk by chunk: the same bits as VAE Decode, in the memory of one chunk and the frames.",
            search_aliases=["decode latent", "latent to image", "VAE decode tiled", "low memory decode"],
            inputs=[_samples(), _vae()],
            outputs=[io.Image.Output(tooltip="The frames.")],
        )

    @classmethod
    def execute(cls, samples: dict, vae) -> io.NodeOutput:
        with timed(samples, "decode"):
            images = decode_images(vae, latent_of(vae, samples))
        return io.NodeOutput(images)


class TurboDiffusionVAEDecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionVAEDecodeVideo",
            display_name="TurboDiffusion VAE Decode Video",
            category=CATEGORY,
            essentials_category="Video Generation",
            description="Decodes a Wan video chunk by chunk straight into an mp4, for Save Video: the same file as VAE Decode and "
            "Create Video make, without holding its frames in memory.",
            search_aliases=["decode latent", "latent to video", "create video", "low memory decode"],
            inputs=[
                _samples(),
                _vae(),
                io.Float.Input(
                    "fps", default=16.0, min=1.0, max=120.0, step=1.0, tooltip="Frames a second. Wan 2.1 and A14B: 16."
                ),
            ],
            outputs=[io.Video.Output(tooltip="The mp4, for Save Video.")],
        )

    @classmethod
    def execute(cls, samples: dict, vae, fps: float) -> io.NodeOutput:
        rate = Fraction(fps)
        with timed(samples, "decode"):
            path, frames = decode_video(vae, latent_of(vae, samples), rate, Path(folder_paths.get_temp_directory()))
        return io.NodeOutput(DecodedVideo(path, frames, rate))


class DecodedVideo(InputImpl.VideoFromFile):
    """The mp4 of a decode, and the frames it was encoded from.

    Saving copies the mp4's stream; another quality is encoded from the frames, not from the mp4. The mp4 stays in ComfyUI's temp
    folder, which ComfyUI empties when it starts: other VIDEO objects may have been made from its path."""

    def __init__(self, path: Path, frames: torch.Tensor, frame_rate: Fraction):
        super().__init__(str(path))
        self._frames, self._frame_rate = frames, frame_rate

    def get_components(self) -> Types.VideoComponents:
        """The frames in float32, before any loss to H.264."""
        return Types.VideoComponents(images=self._frames.float() / 255, frame_rate=self._frame_rate)

    def save_to(
        self,
        path,
        format=Types.VideoContainer.AUTO,
        codec=Types.VideoCodec.AUTO,
        metadata: dict | None = None,
        bit_depth: int | None = None,
        crf: float | None = None,
    ) -> None:
        as_it_is = crf is None and bit_depth in (None, 8)
        mp4 = format in (Types.VideoContainer.AUTO, Types.VideoContainer.MP4)
        if as_it_is or not mp4 or codec not in (Types.VideoCodec.AUTO, Types.VideoCodec.H264):
            return super().save_to(path, format, codec, metadata, bit_depth, crf)
        _, height, width, _ = self._frames.shape
        with Mp4Writer(path, width, height, self._frame_rate, metadata, bit_depth or 8, crf) as writer:
            writer.write(self._frames)

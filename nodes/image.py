"""Preparing the first frame of an image-to-video run."""

import torch
from comfy_api.latest import io

from ..turbo_core.image import ASPECTS, BACKGROUNDS, FITS, SIZES, prepare
from .loader import CATEGORY


class TurboDiffusionPrepareImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionPrepareImage",
            display_name="TurboDiffusion Prepare Image",
            category=CATEGORY,
            essentials_category="Image Tools",
            description="Converts any image to RGB at a size the models were trained at, and outputs that size for "
            "the next nodes.",
            search_aliases=["resize image", "RGBA to RGB", "image size", "adaptive resolution", "crop", "pad"],
            inputs=[
                io.MultiType.Input(
                    "image",
                    types=[io.Image, io.Mask],
                    tooltip="An image or a batch with 1 to 4 channels; a mask counts as gray.",
                ),
                io.Combo.Input(
                    "resolution",
                    options=list(SIZES),
                    default="480p",
                    tooltip="The area: 480p is that of 832x480, 720p that of 1280x720.",
                ),
                io.Combo.Input(
                    "aspect",
                    options=list(ASPECTS),
                    default="image",
                    tooltip="The aspect ratio, width to height. image: that of the image, at the same area.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="stretch",
                    tooltip="What to do when the aspects differ. stretch: as TurboDiffusion does. crop: cut off the "
                    "edges. pad: add a border.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default="black",
                    optional=True,
                    tooltip="The color of the border and behind transparent parts.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The RGB image at that size, for the start_image of WanImageToVideo."),
                io.Int.Output(display_name="width", tooltip="The width in pixels."),
                io.Int.Output(display_name="height", tooltip="The height in pixels."),
            ],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, resolution: str, aspect: str, fit: str, background: str = "black"
    ) -> io.NodeOutput:
        return io.NodeOutput(*prepare(image, resolution, aspect, fit, background))

"""Preparing the picture an image-to-video run starts from."""

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
            description="Makes any picture an RGB image of a size the models were trained at, and gives that size to the nodes after it.",
            search_aliases=["resize image", "RGBA to RGB", "image size", "adaptive resolution", "crop", "pad"],
            inputs=[
                io.MultiType.Input(
                    "image",
                    types=[io.Image, io.Mask],
                    tooltip="A picture or a batch, with 1 to 4 channels; a mask counts as gray.",
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
                    tooltip="Width to height. image: the picture's own, at the same area.",
                ),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
                    default="stretch",
                    tooltip="What to do when the aspects differ. stretch: as the reference does; crop: cut off what sticks out; pad: add a border.",
                ),
                io.Combo.Input(
                    "background",
                    options=list(BACKGROUNDS),
                    default="black",
                    optional=True,
                    tooltip="The colour of the border and behind what is transparent.",
                ),
            ],
            outputs=[
                io.Image.Output(tooltip="The picture in RGB at that size, for the start_image of WanImageToVideo."),
                io.Int.Output(display_name="width", tooltip="Its width in pixels."),
                io.Int.Output(display_name="height", tooltip="Its height in pixels."),
            ],
        )

    @classmethod
    def execute(cls, image, resolution: str, aspect: str, fit: str, background: str = "black") -> io.NodeOutput:
        return io.NodeOutput(*prepare(image, resolution, aspect, fit, background))

"""Long videos: segments that each continue the one before, as one video whose frames are never all in memory."""

from fractions import Fraction
from pathlib import Path

import folder_paths
from comfy_api.latest import Input, InputImpl, Types, io

from ..turbo_core.errors import TurboError
from ..turbo_core.video import JoinedImages, LazyImages, stored_images
from .decode import DecodedVideo
from .loader import CATEGORY

_LONGEST = 81  # frames of overlap; what the models make at once


class TurboDiffusionJoinVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionJoinVideo",
            display_name="TurboDiffusion Join Video",
            category=CATEGORY,
            description="Appends a segment to a longer video and hands out its last frames, from which WanImageToVideo "
            "starts the next segment. The frames stay on disk, however long the video becomes.",
            search_aliases=["long video", "extend video", "continue video", "concatenate videos", "segments"],
            inputs=[
                io.Video.Input("video", tooltip="The new segment, from TurboDiffusion VAE Decode Video."),
                io.Int.Input(
                    "overlap",
                    default=5,
                    min=1,
                    max=_LONGEST,
                    step=4,
                    tooltip="How many frames two segments share: the last of one are the first of the next, and are in "
                    "the result once. 1: only a picture is passed on; 5 and more pass on motion too.",
                ),
                io.Video.Input("before", optional=True, tooltip="What the segment continues; empty for the first one."),
            ],
            outputs=[
                io.Video.Output(display_name="video", tooltip="All segments so far, for Save Video or the next Join."),
                io.Image.Output(
                    display_name="last_frames", tooltip="The last frames, as start_image of the next WanImageToVideo."
                ),
            ],
        )

    @classmethod
    def execute(cls, video: Input.Video, overlap: int, before: Input.Video | None = None) -> io.NodeOutput:
        images, rate = images_of(video)
        if len(images) <= overlap:
            raise TurboError(f"The segment has {len(images)} frames and overlap is {overlap}: make it longer.")
        joined = images
        if before is not None:
            first, first_rate = images_of(before)
            if first.shape[1:] != images.shape[1:] or first_rate != rate:
                raise TurboError(
                    f"The segment is {_described(images, rate)} and what it continues {_described(first, first_rate)}: "
                    "make both of one size and frame rate."
                )
            joined = JoinedImages([first, images.part(overlap, len(images))])
        return io.NodeOutput(JoinedVideo(joined, rate), images.part(len(images) - overlap, len(images))[:])


def _described(images: LazyImages, rate: Fraction) -> str:
    _, height, width, _ = images.shape
    return f"{width}x{height} at {float(rate):g} frames a second"


def images_of(video: Input.Video) -> tuple[LazyImages, Fraction]:
    """The frames of a VIDEO and its frame rate. The frames of a video from another node are stored in 8 bits in a file
    of ComfyUI's temp folder; its sound is dropped."""
    if isinstance(video, (DecodedVideo, JoinedVideo)):
        return video.lazy_images, video.frame_rate
    components = video.get_components()
    return stored_images(Path(folder_paths.get_temp_directory()), components.images), components.frame_rate


class JoinedVideo(InputImpl.VideoFromComponents):
    """A video whose frames are read one at a time from the files of its segments."""

    def __init__(self, images: LazyImages, frame_rate: Fraction):
        super().__init__(Types.VideoComponents(images=images, frame_rate=frame_rate))
        self.lazy_images, self.frame_rate = images, frame_rate

    def get_components(self) -> Types.VideoComponents:
        """All frames in float32, 0 to 1."""
        return Types.VideoComponents(images=self.lazy_images[:], frame_rate=self.frame_rate)

    # ComfyUI's implementations of the methods below read all frames.

    def get_dimensions(self) -> tuple[int, int]:
        _, height, width, _ = self.lazy_images.shape
        return width, height

    def get_frame_count(self) -> int:
        return len(self.lazy_images)

    def get_frame_rate(self) -> Fraction:
        return self.frame_rate

    def get_duration(self) -> float:
        return float(len(self.lazy_images) / self.frame_rate)

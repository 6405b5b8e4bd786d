"""The camera of LingBot-World: a path, its embedding at the video's size, and the conditioning that holds it."""

from pathlib import Path
from typing import Any

import folder_paths
import node_helpers
import numpy as np
import torch
from comfy_api.latest import io, ui

from ..turbo_core.camera.actions import path_from_actions
from ..turbo_core.camera.embed import CONTROLS, Control, embed
from ..turbo_core.camera.folder import CONVENTIONS, Convention, camera_files, find_folder, path_from_folder
from ..turbo_core.camera.path import MAX_FRAMES, CameraPath, check_fov
from ..turbo_core.camera.presets import EASES, PRESETS, path_from_preset
from ..turbo_core.camera.view import top_view
from ..turbo_core.errors import TurboError
from ..turbo_core.host.conditioning import CAMERA_KEY
from ..turbo_core.host.features import show_on_node
from .loader import CATEGORY

SOURCES = ("actions", "preset", "folder")
TurboCamera = io.Custom("TURBO_CAMERA")


class TurboDiffusionCameraPath(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionCameraPath",
            display_name="TurboDiffusion Camera Path",
            category=CATEGORY,
            has_intermediate_output=True,  # ComfyUI shows the picture again when the node comes from its cache
            description="A camera path for LingBot-World: from keys, from a preset, or from files of recorded poses. "
            "Connect its length to the length of the video.",
            search_aliases=["LingBot camera", "trajectory", "WASD", "orbit", "pan", "dolly zoom", "camera motion"],
            inputs=[
                io.Combo.Input(
                    "source",
                    options=list(SOURCES),
                    default="actions",
                    tooltip="Which of the inputs below gives the path.",
                ),
                io.String.Input(
                    "actions",
                    default="w-40",
                    tooltip="For source actions: the keys held, a dash and the number of frames, for example "
                    "w-10,iw-15,none-5. W A S D move, I J K L look up, left, down and right (2 degrees a frame).",
                ),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default="forward", tooltip="For source preset: the move."
                ),
                io.Float.Input(
                    "amount",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    tooltip="For source preset: how far the camera moves. 1 pans or orbits by 60 degrees, tilts by "
                    "30, and halves the distance in a dolly zoom. forward and back are slower below 1; above 1 is "
                    "outside LingBot's training.",
                ),
                io.Combo.Input(
                    "ease",
                    options=list(EASES),
                    default="linear",
                    tooltip="For source preset: linear moves at constant speed, smooth starts and stops slowly.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="For source folder: a folder under ComfyUI's input directory with poses.npy and, "
                    "optionally, intrinsics.npy and action.npy.",
                ),
                io.Combo.Input(
                    "convention",
                    options=list(CONVENTIONS),
                    default="opencv",
                    advanced=True,
                    tooltip="For source folder: the axes of poses.npy. opencv: x right, y down, z forward, as in "
                    "LingBot's examples. opengl: x right, y up, z back, as from Blender or a NeRF.",
                ),
                io.Int.Input(
                    "length",
                    default=81,
                    min=1,
                    max=MAX_FRAMES,
                    step=4,
                    tooltip="For source preset: the number of frames, 4n+1. Actions and files give their own length.",
                ),
                io.Float.Input(
                    "fov",
                    default=0.0,
                    min=0.0,
                    max=170.0,
                    step=1.0,
                    advanced=True,
                    tooltip="Horizontal field of view in degrees. 0: that of the folder, else LingBot's 79.",
                ),
                io.Int.Input(
                    "max_length",
                    default=0,
                    min=0,
                    max=MAX_FRAMES,
                    step=1,
                    optional=True,
                    advanced=True,
                    tooltip="For sources actions and folder: cuts a longer path to this number of frames. 0: no limit.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                TurboCamera.Output(tooltip="The camera path, for TurboDiffusion Camera Embed."),
                io.Int.Output(display_name="length", tooltip="The number of frames, for the length of the video."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> tuple[Any, ...]:
        """Changes when an input or a file in the folder changes."""
        status: list[tuple[str, int, int]] = []
        if inputs.get("source") == "folder" and inputs.get("folder"):
            try:
                files = camera_files(find_folder(_input_directory(), inputs["folder"]))
                status = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
            except (TurboError, OSError):
                pass  # execute raises it
        return (*sorted(inputs.items()), *status)

    @classmethod
    def execute(
        cls,
        source: str,
        actions: str,
        preset: str,
        amount: float,
        ease: str,
        folder: str,
        convention: Convention,
        length: int,
        fov: float,
        max_length: int = 0,
    ) -> io.NodeOutput:
        check_fov(fov)
        if source == "actions":
            path = path_from_actions(actions, max_length, fov)
        elif source == "preset":
            path = path_from_preset(preset, amount, ease, length, fov)
        else:
            path = path_from_folder(_input_directory(), folder, convention, max_length, fov)
        show_on_node(cls, f"{path.frames} frames")
        return io.NodeOutput(path, path.frames, ui=ui.PreviewImage(_picture(path), cls=cls))


def _picture(path: CameraPath) -> torch.Tensor:
    """The path seen from above, [1, H, W, 3] in 0..1."""
    return torch.from_numpy(np.asarray(top_view(path), dtype=np.float32) / 255)[None]


class TurboDiffusionCameraEmbed(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionCameraEmbed",
            display_name="TurboDiffusion Camera Embed",
            category=CATEGORY,
            description="Makes the camera embedding of a LingBot-World model from a path at the video's size, and a "
            "picture of the path from above.",
            search_aliases=["LingBot camera", "plucker", "camera embedding", "WanCameraEmbedding"],
            inputs=[
                TurboCamera.Input("camera", tooltip="A path from TurboDiffusion Camera Path."),
                io.Int.Input(
                    "width", default=832, min=16, max=8192, step=16, tooltip="The video's width, a multiple of 16."
                ),
                io.Int.Input(
                    "height", default=480, min=16, max=8192, step=16, tooltip="The video's height, a multiple of 16."
                ),
                io.Combo.Input(
                    "control",
                    options=list(CONTROLS),
                    default="cam",
                    tooltip="What the model was trained with. cam: lingbot-world-base-cam, which moves and turns by "
                    "the path. act: lingbot-world-base-act, which moves by the W A S D keys of the path and turns by "
                    "the path.",
                ),
            ],
            outputs=[
                io.WanCameraEmbedding.Output(
                    tooltip="The embedding at that size, for TurboDiffusion Camera Condition."
                ),
                io.Image.Output(display_name="preview", tooltip="The path seen from above."),
            ],
        )

    @classmethod
    def execute(cls, camera: CameraPath, width: int, height: int, control: Control) -> io.NodeOutput:
        embedding = embed(camera, width, height, control)
        return io.NodeOutput(embedding, _picture(camera))


class TurboDiffusionCameraCondition(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionCameraCondition",
            display_name="TurboDiffusion Camera Condition",
            category=CATEGORY,
            description="Adds a camera to conditioning, after WanImageToVideo. Without this node LingBot-World moves "
            "the camera freely; for a camera that stands still, use preset static.",
            search_aliases=["LingBot camera", "camera control", "camera conditioning"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt, after WanImageToVideo."),
                io.WanCameraEmbedding.Input("camera_embed", tooltip="An embedding from TurboDiffusion Camera Embed."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="Gets the same camera, as in LingBot, so that guidance acts on the text alone.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the camera."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt with the camera."),
            ],
        )

    @classmethod
    def execute(
        cls,
        positive: io.Conditioning.Type,
        camera_embed: torch.Tensor,
        negative: io.Conditioning.Type | None = None,
    ) -> io.NodeOutput:
        values = {CAMERA_KEY: camera_embed}
        with_camera = [node_helpers.conditioning_set_values(given or [], values) for given in (positive, negative)]
        return io.NodeOutput(*with_camera)


def _input_directory() -> Path:
    return Path(folder_paths.get_input_directory())

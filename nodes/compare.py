"""Comparing two videos: side by side, with PSNR and SSIM of each frame."""

import torch
from comfy.model_management import get_torch_device
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..turbo_core import compare, plot
from ..turbo_core.host.features import show_on_node
from .loader import CATEGORY


class TurboDiffusionCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionCompare",
            display_name="TurboDiffusion Compare",
            category=CATEGORY,
            essentials_category="Video Tools",
            description="Puts two videos side by side and plots PSNR and SSIM of their frames: shows what another "
            "attention, mode, top-k or precision changes at the same seed.",
            search_aliases=["PSNR", "SSIM", "side by side", "difference", "quality"],
            inputs=[
                io.Image.Input("a", tooltip="The reference frames; shown on the left."),
                io.Image.Input("b", tooltip="The same number of frames of the same size; shown on the right."),
                io.String.Input("label_a", default="A", tooltip="The label above the left video."),
                io.String.Input("label_b", default="B", tooltip="The label above the right video."),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[
                io.Image.Output(display_name="side_by_side", tooltip="Both videos side by side, frame by frame."),
                io.Image.Output(display_name="plot", tooltip="PSNR and SSIM of each frame as curves."),
                io.String.Output(display_name="report", tooltip="The numbers as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, a: torch.Tensor, b: torch.Tensor, label_a: str, label_b: str) -> io.NodeOutput:
        compare.check(a, b)
        frames, height, width, _ = a.shape
        progress = ProgressBar(frames)  # its updates also raise when the run is interrupted
        found = []
        for score in compare.scores(a, b, compare.device_for(get_torch_device())):
            found.append(score)
            progress.update(1)
        labels = (label_a, label_b)
        picture = plot.curves(
            [
                ("PSNR (dB)", "{:.2f}", [score.psnr for score in found]),
                ("SSIM", "{:.4f}", [score.ssim for score in found]),
            ]
        ).unsqueeze(0)
        text = compare.report(found, labels, width, height)
        show_on_node(cls, text.partition("\n")[2])  # without the line of labels
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(compare.beside(a, b, plot.captions(labels, width, height)), picture, text, ui=shown)

"""What a setting costs: two videos side by side, and how far apart their frames are."""

from comfy.model_management import get_torch_device
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..turbo_core import compare, plot
from .loader import CATEGORY


class TurboDiffusionCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionCompare",
            display_name="TurboDiffusion Compare",
            category=CATEGORY,
            essentials_category="Video Tools",
            description="Puts two videos side by side and plots PSNR and SSIM of their frames: what another attention, mode, top-k or "
            "precision changes at the same seed.",
            search_aliases=["PSNR", "SSIM", "side by side", "difference", "quality"],
            inputs=[
                io.Image.Input("a", tooltip="The frames to compare with; they stand on the left."),
                io.Image.Input("b", tooltip="As many frames of the same size; they stand on the right."),
                io.String.Input("label_a", default="A", tooltip="What stands above the left video."),
                io.String.Input("label_b", default="B", tooltip="What stands above the right video."),
            ],
            outputs=[
                io.Image.Output(display_name="side_by_side", tooltip="Both videos beside each other, frame by frame."),
                io.Image.Output(display_name="plot", tooltip="PSNR and SSIM of each frame as a curve."),
                io.String.Output(display_name="report", tooltip="The figures as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, a, b, label_a: str, label_b: str) -> io.NodeOutput:
        compare.check(a, b)
        frames, height, width, _ = a.shape
        progress = ProgressBar(frames)  # also where an interrupt takes effect
        found = []
        device = get_torch_device()
        if device.type != "cuda":  # not all others have float64
            device = "cpu"
        for score in compare.scores(a, b, device):
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
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(compare.beside(a, b, plot.captions(labels, width, height)), picture, text, ui=shown)

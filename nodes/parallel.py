"""One video on several GPUs."""

import logging

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io, ui

from ..turbo_core.host.features import show_on_node
from ..turbo_core.host.parallel import BACKENDS, with_parallel
from .loader import CATEGORY

logger = logging.getLogger("turbodiffusion")


class TurboDiffusionParallel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionParallel",
            display_name="TurboDiffusion Parallel",
            category=CATEGORY,
            has_intermediate_output=True,  # its text stays when the page is reloaded
            description="Runs every step of a model on several GPUs: each has all weights and a share of the video. "
            "The video is the same on any number of them. Needs Ray (pip install ray).",
            search_aliases=["multi gpu", "multiple GPUs", "sequence parallel", "Ulysses", "context parallel"],
            inputs=[
                io.Model.Input("model", tooltip="A model from TurboDiffusion Loader; each expert has its own node."),
                io.Int.Input(
                    "gpus",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="How many GPUs; must divide the attention heads: 2, 3, 4 or 6 for 1.3B (12 heads), 2, 4, "
                    "5 or 8 for 14B (40). 0: all. 1: the model is unchanged.",
                ),
                io.Combo.Input(
                    "backend",
                    options=list(BACKENDS),
                    default="auto",
                    advanced=True,
                    tooltip="How they talk. auto: nccl on GPUs, gloo where ComfyUI runs on the CPU; there gpus is a "
                    "number of processes.",
                ),
                io.String.Input(
                    "address",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Empty: the GPUs of this machine. auto: those of the Ray cluster that this machine was "
                    "added to by ray start, whose machines need ComfyUI, this pack and the models in the same folders.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(tooltip="The model on several GPUs; the one that came in is unchanged.")],
        )

    @classmethod
    def execute(cls, model: ModelPatcher, gpus: int, backend: str, address: str = "") -> io.NodeOutput:
        parallel, text = with_parallel(model, gpus, backend, address.strip())
        logger.info("TurboDiffusion Parallel: %s", text)
        show_on_node(cls, text)
        return io.NodeOutput(parallel, ui=ui.PreviewText(text))

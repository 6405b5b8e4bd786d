"""Applying LoRAs."""

import logging
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..turbo_core.checkpoint.read import read
from ..turbo_core.host.features import show_on_node
from ..turbo_core.host.kernels_ahead import compile_kernels
from ..turbo_core.host.lora import with_lora
from .loader import CATEGORY

logger = logging.getLogger("turbodiffusion")

_FOLDER = "loras"


class TurboDiffusionLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionLoRA",
            display_name="TurboDiffusion LoRA",
            category=CATEGORY,
            has_intermediate_output=True,  # its text stays when the page is reloaded
            description="Applies a LoRA of any common key style, and says how many of its layers fit and why others "
            "do not. It runs beside the weights, which stay as they are, so nothing is lost to rounding; give each "
            "expert its own.",
            search_aliases=["LoRA", "load lora", "LoraLoaderModelOnly", "lightning"],
            inputs=[
                io.Model.Input("model", tooltip="A model from TurboDiffusionLoader."),
                io.Combo.Input(
                    "lora_name",
                    options=folder_paths.get_filename_list(_FOLDER),
                    tooltip="A file in models/loras: diffusers, PEFT, kohya or musubi keys.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.05,
                    tooltip="How much of it is added; 0 changes nothing, a negative value takes it away.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output(tooltip="The model with the LoRA; the one that came in is unchanged.")],
        )

    @classmethod
    def execute(cls, model: Any, lora_name: str, strength: float) -> io.NodeOutput:
        tensors, _ = read(Path(folder_paths.get_full_path_or_raise(_FOLDER, lora_name)))
        patched, found = with_lora(model, lora_name, tensors, strength)
        compile_kernels(patched)
        text = f"{lora_name}: {found.report}"
        logger.info("%s", text)
        show_on_node(cls, text)
        return io.NodeOutput(patched, ui=ui.PreviewText(text))

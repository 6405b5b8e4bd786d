"""Applying LoRAs."""

import logging

import comfy.utils
import folder_paths
from comfy_api.latest import io, ui

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
            has_intermediate_output=True,  # what it shows stays when the page is loaded again
            description="Applies a LoRA of any common key style. On int8 layers it runs beside the weights, which stay int8 and lose "
            "nothing to rounding; give each expert its own.",
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
            outputs=[io.Model.Output(tooltip="The model with the LoRA; the one that came in is unchanged.")],
        )

    @classmethod
    def execute(cls, model, lora_name: str, strength: float) -> io.NodeOutput:
        tensors = comfy.utils.load_torch_file(folder_paths.get_full_path_or_raise(_FOLDER, lora_name), safe_load=True)
        patched, found = with_lora(model, lora_name, tensors, strength)
        report = f"{lora_name}: {len(found.layers)} layers"
        if found.unmatched:
            report += f", {len(found.unmatched)} of {len(tensors)} tensors not used (first: {found.unmatched[0]})"
        logger.info("%s", report)
        return io.NodeOutput(patched, ui=ui.PreviewText(report))

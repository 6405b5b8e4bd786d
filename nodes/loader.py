"""Loading diffusion models."""

import os

import folder_paths
from comfy_api.latest import io

from ..turbo_core.host.load import DTYPES, load_model

CATEGORY = "TurboDiffusion"
_FOLDER = "diffusion_models"


class TurboDiffusionLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionLoader",
            display_name="TurboDiffusion Loader",
            category=CATEGORY,
            description="Loads a TurboWan checkpoint (.pth or .safetensors) or a stock Wan 2.1 / 2.2 A14B file as a MODEL. A TurboWan "
            "model with trained sparse-linear attention runs it right away.",
            search_aliases=["TurboWan", "Wan loader", "load diffusion model", "UNETLoader"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list(_FOLDER),
                    tooltip="A file in models/diffusion_models. What it holds is read from its tensors, not from its name.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Precision of weights and computation. auto: bf16 on a GPU, as the models were trained; fp32 on a CPU.",
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, dtype: str) -> tuple:
        """Changes when the file does, so that a re-converted file under the same name is loaded anew."""
        status = os.stat(folder_paths.get_full_path_or_raise(_FOLDER, model_name))
        return (model_name, dtype, status.st_mtime_ns, status.st_size)

    @classmethod
    def execute(cls, model_name: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_model(folder_paths.get_full_path_or_raise(_FOLDER, model_name), dtype))

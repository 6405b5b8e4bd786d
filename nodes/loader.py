"""Loading diffusion models."""

import os
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..turbo_core.checkpoint.shards import choices, files_of
from ..turbo_core.errors import CheckpointError
from ..turbo_core.host.load import DTYPES, load_model

CATEGORY = "TurboDiffusion"
_FOLDER = "diffusion_models"


def model_names() -> list[str]:
    """The diffusion models that ComfyUI lists, with one entry for each that is in several files."""
    listed = folder_paths.get_filename_list(_FOLDER)
    return choices(listed, lambda name: folder_paths.get_full_path(_FOLDER, name) is not None)


def file_status(name: str, folder: str = _FOLDER) -> tuple[tuple[int, int], ...]:
    """What changes when one of the files of a model does."""
    path = Path(folder_paths.get_full_path_or_raise(folder, name))
    try:
        files = files_of(path)
    except CheckpointError:  # which the node itself is to raise
        files = [path]
    return tuple((status.st_mtime_ns, status.st_size) for status in map(os.stat, files))


class TurboDiffusionLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionLoader",
            display_name="TurboDiffusion Loader",
            category=CATEGORY,
            essentials_category="Video Generation",
            description="Loads a TurboWan checkpoint (.pth or .safetensors), a stock Wan 2.1 / 2.2 A14B file or LingBot-World as a MODEL, "
            "bitsandbytes NF4 and models in several files included. A TurboWan model with trained sparse-linear attention runs it right "
            "away.",
            search_aliases=[
                "TurboWan",
                "Wan loader",
                "load diffusion model",
                "UNETLoader",
                "LingBot",
                "NF4",
                "bitsandbytes",
                "shards",
            ],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_names(),
                    tooltip="A file in models/diffusion_models. What it holds is read from its tensors, not from its name. A model in "
                    "several files is listed once, as its .index.json.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Precision of weights and computation. auto: bf16 on a GPU, as the models were trained; fp32 on a CPU.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="An ordinary MODEL: LoRA, compile and sampler nodes take it.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, dtype: str) -> tuple:
        """Changes when a file does, so that a re-converted file under the same name is loaded anew."""
        return (model_name, dtype, *file_status(model_name))

    @classmethod
    def execute(cls, model_name: str, dtype: str) -> io.NodeOutput:
        return io.NodeOutput(load_model(folder_paths.get_full_path_or_raise(_FOLDER, model_name), dtype))

"""Loading diffusion models."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..turbo_core.checkpoint.shards import choices, files_of
from ..turbo_core.errors import CheckpointError
from ..turbo_core.host.kernels_ahead import compile_kernels
from ..turbo_core.host.load import DTYPES, load_model
from ..turbo_core.host.prefetch import read_first_ahead
from ..turbo_core.host.prompt import node_id
from ..turbo_core.host.quant import ACTIVATIONS

CATEGORY = "TurboDiffusion"
_FOLDER = "diffusion_models"


def model_names() -> list[str]:
    """The diffusion models that ComfyUI lists; a model in several files is one entry."""
    listed = folder_paths.get_filename_list(_FOLDER)
    return choices(listed, lambda name: folder_paths.get_full_path(_FOLDER, name) is not None)


def file_status(name: str, folder: str = _FOLDER) -> tuple[tuple[int, int], ...]:
    """(mtime in ns, size) of each file of a model."""
    path = Path(folder_paths.get_full_path_or_raise(folder, name))
    try:
        files = files_of(path)
    except CheckpointError:  # the node raises it when it reads the model
        files = [path]
    return tuple((status.st_mtime_ns, status.st_size) for status in map(os.stat, files))


def _is_second(prompt: Mapping[str, Any], loader: str | None) -> bool:
    """Whether a loader's model, directly or through other nodes, is used only as the low expert, whose file is read
    while the high expert runs."""
    reached, names = [loader], set()
    for each in reached:
        for user, node in prompt.items():
            for name, value in node.get("inputs", {}).items():
                if isinstance(value, list) and value[:1] == [each]:
                    names.add(name)
                    if name not in ("high", "low") and user not in reached:
                        reached.append(user)
    return "low" in names and "high" not in names


class TurboDiffusionLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TurboDiffusionLoader",
            display_name="TurboDiffusion Loader",
            category=CATEGORY,
            essentials_category="Video Generation",
            description="Loads a TurboWan checkpoint (.pth or .safetensors), a stock Wan 2.1 / 2.2 A14B file or "
            "LingBot-World as a MODEL, bitsandbytes NF4 and models in several files included. A TurboWan model runs "
            "the sparse-linear attention it was trained with.",
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
                    tooltip="A file in models/diffusion_models. Its kind is found from its tensors, not from its "
                    "name. A model in several files is listed once, as its .index.json.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="The dtype of weights and computation. auto: bf16 on a GPU, as in training; fp32 on a CPU.",
                ),
                io.Combo.Input(
                    "activations",
                    options=list(ACTIVATIONS),
                    default="fine",
                    optional=True,
                    tooltip="How activations are quantized for int8 weights with 128x128 tile scales; without effect "
                    "on other files. fine: a scale for 128 channels of a token. upstream: TurboDiffusion's, one for "
                    "128 tokens too, less exact.",
                ),
            ],
            hidden=[io.Hidden.prompt],
            outputs=[io.Model.Output(tooltip="A standard MODEL: LoRA, compile and sampler nodes accept it.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str, dtype: str, activations: str = "fine") -> tuple[Any, ...]:
        """Changes when a file changes, so that a file converted again under the same name is loaded again."""
        return (model_name, dtype, activations, *file_status(model_name))

    @classmethod
    async def execute(cls, model_name: str, dtype: str, activations: str = "fine") -> io.NodeOutput:
        """Async, although it awaits nothing: of the nodes that are ready ComfyUI executes the async ones first, so that
        kernels are compiled and the file is read while the prompt and an image are encoded."""
        model = load_model(folder_paths.get_full_path_or_raise(_FOLDER, model_name), dtype, activations)
        compile_kernels(model)
        if not _is_second(getattr(cls.hidden, "prompt", None) or {}, node_id()):
            read_first_ahead(model)
        return io.NodeOutput(model)

"""Converting checkpoints to another weight format, with a LoRA or a delta merged."""

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
from comfy_api.latest import io, ui

from ..turbo_core.convert import output
from ..turbo_core.convert.codec import WEIGHTS
from ..turbo_core.convert.convert import BASE_AND_TEACHER, Request, convert
from ..turbo_core.errors import TurboError
from ..turbo_core.host.features import show_on_node
from .loader import CATEGORY, file_status, model_names

_FOLDER, _LORAS = "diffusion_models", "loras"
_NONE = "none"


class TurboDiffusionConvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        models = model_names()
        return io.Schema(
            node_id="TurboDiffusionConvert",
            display_name="TurboDiffusion Convert",
            category=CATEGORY,
            description="Writes a checkpoint as one safetensors file in the folder of the diffusion models: quantized "
            "or not, with a LoRA merged, or with the difference between a turbo model and its teacher added to "
            "another model.",
            search_aliases=["quantize", "int8", "fp8", "pth to safetensors", "merge LoRA", "save model", "delta"],
            inputs=[
                io.Combo.Input("model_name", options=models, tooltip="The .pth or .safetensors file to convert."),
                io.String.Input(
                    "output_name",
                    default="",
                    tooltip="Name of the new file in models/diffusion_models, for example TurboWan2.1-T2V-14B-int8. "
                    "It appears under that name when it is complete.",
                ),
                io.Combo.Input(
                    "weights",
                    options=list(WEIGHTS),
                    default="keep",
                    tooltip="How the linears of the transformer blocks are stored. keep: as they are. int8_block: "
                    "TurboDiffusion's format, for this pack, half the size of bf16. bf16: not quantized. fp8_e4m3fn, "
                    "int8_rowwise: ComfyUI's formats, which its own loader reads too.",
                ),
                io.Boolean.Input(
                    "overwrite", default=False, optional=True, tooltip="Replace an existing file of that name."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=[_NONE, *folder_paths.get_filename_list(_LORAS)],
                    default=_NONE,
                    optional=True,
                    tooltip="A LoRA to merge into the weights.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    tooltip="Strength of the merged LoRA.",
                ),
                io.Combo.Input(
                    "base_name",
                    options=[_NONE, *models],
                    default=_NONE,
                    optional=True,
                    advanced=True,
                    tooltip="A Wan model to speed up: the result is base + delta * (model - teacher).",
                ),
                io.Combo.Input(
                    "teacher_name",
                    options=[_NONE, *models],
                    default=_NONE,
                    optional=True,
                    advanced=True,
                    tooltip="The stock Wan model that model_name was trained from. Set it together with base_name.",
                ),
                io.Float.Input(
                    "delta",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="The weight of the difference added to the base model.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.String.Output(display_name="path", tooltip="The path of the new file.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls,
        output_name: str | None,
        overwrite: bool | None = False,
        base_name: str | None = _NONE,
        teacher_name: str | None = _NONE,
    ) -> bool | str:
        """True, or what is wrong with these inputs, which ComfyUI then does not check itself.

        A linked input is None here: `execute` checks its value."""
        models = (_NONE, *model_names())
        for name in (base_name, teacher_name):
            if name is not None and name not in models:
                return f"{name!r} is not a file in the diffusion_models folder."
        if None not in (base_name, teacher_name) and (base_name == _NONE) != (teacher_name == _NONE):
            return BASE_AND_TEACHER
        try:
            if output_name is not None:
                target = _target(output_name)
                if overwrite is not None:
                    output.check_free(target, overwrite)
        except TurboError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(
        cls,
        model_name: str,
        output_name: str,
        lora_name: str = _NONE,
        base_name: str = _NONE,
        teacher_name: str = _NONE,
        **_: Any,
    ) -> tuple[Any, ...]:
        """Changes when an input file changes, and at each call while the output file is missing."""
        files = [file_status(name) for name in (model_name, base_name, teacher_name) if name != _NONE]
        files += [file_status(lora_name, _LORAS)] if lora_name != _NONE else []
        missing = float("nan") if not _target(output_name).exists() else 0.0
        return files, missing

    @classmethod
    def execute(
        cls,
        model_name: str,
        output_name: str,
        weights: str,
        overwrite: bool = False,
        lora_name: str = _NONE,
        lora_strength: float = 1.0,
        base_name: str = _NONE,
        teacher_name: str = _NONE,
        delta: float = 1.0,
    ) -> io.NodeOutput:
        request = Request(
            model=Path(folder_paths.get_full_path_or_raise(_FOLDER, model_name)),
            output=_target(output_name),
            weights=weights,
            overwrite=overwrite,
            lora=_optional_file(_LORAS, lora_name),
            lora_strength=lora_strength,
            base=_optional_file(_FOLDER, base_name),
            teacher=_optional_file(_FOLDER, teacher_name),
            delta=delta,
        )
        bar = comfy.utils.ProgressBar(1)

        def progress(stage: str, done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

        report = convert(request, progress)
        show_on_node(cls, report.summary)
        return io.NodeOutput(str(report.path), ui=ui.PreviewText(str(report)))


def _optional_file(folder: str, name: str) -> Path | None:
    return None if name == _NONE else Path(folder_paths.get_full_path_or_raise(folder, name))


def _target(output_name: str) -> Path:
    """The path of the new file: that of the file ComfyUI lists under the name, else one in the folder for new files."""
    name = output.check_name(output_name)
    existing = folder_paths.get_full_path(_FOLDER, name)
    if existing is not None:
        return Path(existing)
    folders = [Path(folder) for folder in folder_paths.get_folder_paths(_FOLDER)]
    return next((folder for folder in folders if folder.name == _FOLDER), folders[0]) / name

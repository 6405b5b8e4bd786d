"""A report in plain text: the backend of each operator and why no faster one runs, the memory of the models, and the
last run."""

import importlib.metadata
import platform
from collections import Counter

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.cli_args import args
from comfyui_version import __version__ as comfyui_version

from ...kernels import OPERATORS, NoBackendError, automatic_format, sage_pv_format, suited_weights
from ..checkpoint.layout import TEXT_WIDTH, WanSpec, expected_shapes
from ..memory import StepForm, step_bytes, tokens, weight_bytes
from ..record import RUN, RunRecord, amount
from ..speed import speed_line
from .base_model import OVERRIDING_NODES, UNUSED_OVERRIDE, TurboWAN
from .lora import lora_lines

_GB = 1e9
# Listed even when there were none.
_CALLS = ("network", "sparse attention", "dense attention", "int8 linear", "float linear")
_FRAMES = 81
_SIZES = {"480p": (832, 480, _FRAMES), "720p": (1280, 720, _FRAMES)}
_PUBLISHED = {
    "T2V 1.3B": (1536, 8960, 30, 16),
    "T2V 14B": (5120, 13824, 40, 16),
    "I2V A14B, each expert": (5120, 13824, 40, 36),
}


def report(linked: object = None) -> str:
    """The text: whether this device is fast, then the machine, the backend of each operator with its reasons, memory,
    and the last run, which is the one that made `linked` (a LATENT or MODEL), else the latest of the loaded models."""
    loaded = [each.model for each in comfy.model_management.current_loaded_models if each.model is not None]
    patchers = [patcher for patcher in loaded if isinstance(patcher.model, TurboWAN)]
    sections = {
        "Machine": _machine(),
        "Operators (what runs, and why nothing faster does)": _operators(),
        "Loaded models": _models(patchers),
        "Memory of the published models (estimate; a step with attention in 8 bits)": published_lines(),
        "Last run": _run(linked, patchers),
    }
    paragraphs = ["\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections.items()]
    return "\n\n".join([speed_line(comfy.model_management.get_torch_device(), args.cpu), *paragraphs])


def _machine() -> list[str]:
    device, cpu = comfy.model_management.get_torch_device(), torch.device("cpu")
    lines = [
        f"ComfyUI {comfyui_version}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"triton {_version('triton')}, comfy-kitchen {_version('comfy-kitchen')}",
        f"Device: {comfy.model_management.get_torch_device_name(device)}",
        f"RAM: {_free(cpu)}",
    ]
    if device.type != "cpu":
        lines.append(f"VRAM: {_free(device)}, ComfyUI's mode {comfy.model_management.vram_state.name}")
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / _GB
        lines.append(f"Tensors took at most {peak:.1f} GB of VRAM since ComfyUI started (measured)")
    return lines


def _operators() -> list[str]:
    """A line for each operator of the kernels."""
    device = comfy.model_management.get_torch_device()
    lines = []
    for title, operator in OPERATORS.items():
        try:
            lines.append(f"{title}: {operator.choose(device)}")
        except NoBackendError as error:
            lines.append(f"{title}: none. {error}")
        except torch.cuda.OutOfMemoryError:
            lines.append(f"{title}: not known, since the self-test ran out of memory")
    sage, suited = sage_pv_format(device), suited_weights(device)
    return [
        *lines,
        f"sparse attention in mode auto: {_automatic(device)}",
        f"sage attention (mode sagesla) multiplies with v in {sage.name}: {sage.reason}",
        f"int8 weights that suit this device (weights of TurboDiffusion Convert): {suited.weights}: {suited.reason}",
    ]


def _automatic(device: torch.device) -> str:
    try:
        name, reason = automatic_format(device)
    except torch.cuda.OutOfMemoryError:
        return "not known, since the self-test ran out of memory"
    return f"8 bits, v in {name}: {reason}" if name else f"16 bits: {reason}"


def _models(patchers: list[comfy.model_patcher.ModelPatcher]) -> list[str]:
    lines = []
    for patcher in patchers:
        model = patcher.model
        sizes = (f"{amount(model.memory_required(_latent(model, *size)))} at {name}" for name, size in _SIZES.items())
        lines += [
            f"{model.source.name}: {model.spec.describe()}, computing in {_name(model.get_dtype_inference())}",
            f"  weights {amount(patcher.model_size())}, of these {amount(patcher.loaded_size())} on the device "
            f"(measured); a step of {_FRAMES} frames {', '.join(sizes)} (estimate, which ComfyUI reserves)",
        ]
        lines += lora_lines(patcher)
        if model.last_run is None and model.calls:
            lines.append(f"  since it was loaded, under other samplers: {_calls(model.calls)}")
            lines += [f"  {line}" for line in _unused_override(model.calls)]
    return lines or ["none: run a workflow, and link its latent to this node"]


def _latent(model: TurboWAN, width: int, height: int, frames: int) -> list[int]:
    """The shape of a video's latent."""
    scale = model.latent_format.spacial_downscale_ratio
    return [1, model.spec.out_channels, (frames - 1) // 4 + 1, height // scale, width // scale]


def published_lines() -> list[str]:
    """A line for each published model, with weights and steps in int8 and bf16."""
    lines = []
    for name, (dim, ffn_dim, layers, channels) in _PUBLISHED.items():
        spec = WanSpec(True, True, dim, ffn_dim, layers, channels, TEXT_WIDTH)
        shapes = expected_shapes(spec)
        weights = [amount(weight_bytes(shapes, torch.bfloat16, int8)) for int8 in (True, False)]
        steps = []
        for title, size in _SIZES.items():
            forms = (StepForm("tiles"), StepForm("float"))
            sizes = (amount(step_bytes(spec, tokens(*size), torch.bfloat16, form)) for form in forms)
            steps.append(f"{' and '.join(sizes)} at {title}")
        lines.append(
            f"{name}, in int8 and bf16: weights {' and '.join(weights)}; a step of {_FRAMES} frames {', '.join(steps)}"
        )
    return lines


def _run(linked: object, patchers: list[comfy.model_patcher.ModelPatcher]) -> list[str]:
    record = linked.get(RUN) if isinstance(linked, dict) else getattr(getattr(linked, "model", None), "last_run", None)
    if record is None:
        runs = [patcher.model.last_run for patcher in patchers if patcher.model.last_run is not None]
        record = max(runs, key=lambda run: run.began, default=None)
    return ["none with a TurboDiffusion sampler or guider"] if record is None else _describe(record)


def _describe(record: RunRecord) -> list[str]:
    lines = record.lines()
    for expert, calls in record.calls.items():
        lines += [f"{expert}: {_calls(calls)}", *_unused_override(calls)]
    return lines


def _calls(calls: Counter) -> str:
    return ", ".join(f"{name} {calls[name]}" for name in [*_CALLS, *sorted(set(calls) - {*_CALLS, UNUSED_OVERRIDE})])


def _unused_override(calls: Counter) -> list[str]:
    if not calls[UNUSED_OVERRIDE]:
        return []
    return [
        f"  in {calls[UNUSED_OVERRIDE]} sparse attention calls the attention that another node sets "
        f"({OVERRIDING_NODES}) could not take "
        "effect: take that node out, or choose dense in TurboDiffusion SLA"
    ]


def _free(device: torch.device) -> str:
    free, total = (
        get(device) / _GB for get in (comfy.model_management.get_free_memory, comfy.model_management.get_total_memory)
    )
    return f"{free:.1f} of {total:.1f} GB free"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""Loads a model file as a ModelPatcher, as ComfyUI's diffusion model loader does, with our model class."""

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import comfy.memory_management
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import safetensors
import torch

from ..checkpoint import read
from ..checkpoint.check import check_complete
from ..checkpoint.comfy_quant import is_int8_alone
from ..checkpoint.identify import identify
from ..checkpoint.layout import WanSpec
from ..checkpoint.metadata import CONFIG, stated_kind
from ..checkpoint.packed import as_unpacked, packed_weights
from ..checkpoint.shards import read_parts
from ..errors import CheckpointError
from .construct import model_of, network_shapes
from .features import declared_dtypes
from .lora import refuse_hooks_on_quantized
from .nf4 import nf4_operations, patch_at_run_time
from .quant import block_int8_operations
from .saving import with_save_check

logger = logging.getLogger("turbodiffusion")

DTYPES = {"auto": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_QUANTIZED = "is quantized in a way that this ComfyUI cannot load"
_BUILT = "looks like a Wan model that this ComfyUI cannot build"
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def load_model(
    path: str, dtype_name: str = "auto", activations: str = "fine", disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The model in the file at `path` as an unpatched ModelPatcher, its weights mapped from the file where they can be.

    `dtype_name` is a key of DTYPES, `activations` of quant.ACTIVATIONS. `disable_dynamic` is how ComfyUI asks for a
    patcher without dynamic VRAM, through `cached_patcher_init`. Raises CheckpointError for a file that cannot be
    used."""
    tensors, metadata = read_parts(Path(path), _read)
    with _comfyui_reads(Path(path), _QUANTIZED):
        tensors, metadata = comfy.utils.convert_old_quants(tensors, "", metadata=metadata)
    spec, tensors = identify(Path(path).name, tensors, metadata)
    _refuse_causal(Path(path), spec)
    packed = packed_weights(Path(path).name, tensors)
    whole = as_unpacked(tensors, packed)
    # Of the metadata, whose `config` overrides what the tensors say, only what they cannot say.
    stated = {} if spec.variant else {CONFIG: json.dumps({"transformer": stated_kind(metadata)})}
    with _comfyui_reads(Path(path), _BUILT):
        config = comfy.model_detection.model_config_from_unet(whole, "", metadata=stated)
    if config is None:
        raise CheckpointError(
            f"{Path(path).name} is a kind of Wan model that this ComfyUI does not know ({spec.describe()}): update "
            "ComfyUI."
        )
    device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    compute = DTYPES[dtype_name] or _default_dtype(device)
    stored = comfy.utils.weight_dtype(whole)
    quantized = config.quant_config is not None or spec.int8 or bool(spec.four_bit)
    keep_float8 = dtype_name == "auto" and not quantized and stored in _FLOAT8
    config.set_inference_dtype(stored if keep_float8 else compute, compute if keep_float8 or quantized else None)
    if spec.variant:
        config.unet_config.update(turbo=spec.turbo, trained_sla=spec.sla, text_dim=spec.text_width)
    # Float32 activations meet bf16 weights in the time embedding and the head: every layer must be able to cast.
    if spec.int8 or (spec.turbo and is_int8_alone(tensors)):
        config.custom_operations = block_int8_operations(compute, config.quant_config, activations)
    elif spec.four_bit:
        config.custom_operations = nf4_operations(compute)
    elif config.quant_config is None:
        config.custom_operations = comfy.ops.manual_cast

    with _comfyui_reads(Path(path), _BUILT):
        model = model_of(config, spec, Path(path))
    check_complete(Path(path).name, spec, tensors, packed, network_shapes(model))
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = with_save_check(patcher_class)(model, load_device=device, offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    if not patcher.is_dynamic():
        _match_dtypes(model.diffusion_model, tensors, offload_device)
    with _comfyui_reads(Path(path), _QUANTIZED) if config.quant_config is not None else contextlib.nullcontext():
        model.load_model_weights(tensors, "", assign=True)
    patcher.cached_patcher_init = (load_model, (path, dtype_name, activations))
    refuse_hooks_on_quantized(patcher)
    if spec.four_bit:
        patch_at_run_time(patcher)
    logger.info(
        "Loaded %s: %s, computing in %s.", Path(path).name, spec.describe(), str(compute).removeprefix("torch.")
    )
    if not spec.variant:
        logger.info(
            "%s is a %s, which this pack has no entry for: it runs as ComfyUI runs it, with dense attention.",
            Path(path).name,
            type(model).__name__.removeprefix("Turbo"),
        )
    return patcher


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    read.check_readable(path)
    if path.suffix.lower() not in read.SAFETENSORS_SUFFIXES:
        return read.read_pth(path), {}
    try:
        # The reader that ComfyUI has for dynamic VRAM checks neither the header nor the length of the file.
        with safetensors.safe_open(path, framework="pt"):
            pass
        tensors, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise read.damaged(path, error) from error
    return read.check_tensors(path, tensors), metadata or {}


@contextlib.contextmanager
def _comfyui_reads(path: Path, fault: str) -> Iterator[None]:
    """For a block in which ComfyUI reads a file by itself: turns the errors that a damaged or newer file leads to into
    a CheckpointError, in which `fault` says what is wrong with the file."""
    try:
        yield
    except (ValueError, LookupError, ArithmeticError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, (CheckpointError, torch.OutOfMemoryError)):
            raise
        raise CheckpointError(f"{path.name} {fault} ({error}); update ComfyUI, or download the file again.") from error


def _refuse_causal(path: Path, spec: WanSpec) -> None:
    """Raises CheckpointError for LingBot-World's Fast models: they have the tensors of the Base ones and are sampled in
    another way, which only the config.json beside them says."""
    name = read.model_class(path)
    if spec.camera and any(word in name for word in ("Fast", "Causal")):
        raise CheckpointError(
            f"{path.name} is a {name} by its config.json, which makes a video chunk by chunk and is not supported; "
            "use a "
            "LingBot-World Base (Cam) or Base (Act) model."
        )


def _default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, as the models were trained, where the device computes in it; float32 elsewhere. Never float16."""
    if comfy.model_management.is_device_cpu(device) or not comfy.model_management.should_use_bf16(device):
        return torch.float32
    return torch.bfloat16


def _match_dtypes(network: torch.nn.Module, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
    """Converts tensors to what their layer declares, in place in the dictionary. One that fits stays mapped from the
    file."""
    for name, dtype in declared_dtypes(network).items():
        if name in tensors:
            tensors[name] = tensors[name].to(device=device, dtype=dtype)

"""Reading model files without executing anything in them and without copying them into memory."""

import json
import pickle
import zipfile
from pathlib import Path

import safetensors
import torch

from ..errors import CheckpointError
from .shards import read_parts

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
# How the releases of safetensors report a cut file: older ones by the name of the error, 0.8 in words.
_CUT_SAFETENSORS = ("IncompleteBuffer", "InvalidHeaderLength", "not fully covered", "invalid header length")


def check_readable(path: Path) -> None:
    """Raises CheckpointError with the cause for a file that is no checkpoint at all: absent, empty, a web page, a Git LFS
    pointer, or in the format of the other suffix."""
    if not path.is_file():
        raise CheckpointError(f"{path.name} does not exist; place it in ComfyUI's models/diffusion_models folder.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error.strerror}); check its rights and the disk."
        ) from error
    if not head:
        raise CheckpointError(f"{path.name} is empty; download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path.name} is a Git LFS pointer, not the model; download the file itself.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path.name} is a web page, not a model; use the download link of the file itself.")
    is_safetensors_name = path.suffix.lower() in SAFETENSORS_SUFFIXES
    if head.startswith(b"PK\x03\x04") and is_safetensors_name:
        raise CheckpointError(f"{path.name} is a PyTorch file; rename it to end in .pth.")
    if head[8:10] == b'{"' and not is_safetensors_name:
        raise CheckpointError(f"{path.name} is a safetensors file; rename it to end in .safetensors.")


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a model file of either format, memory-mapped, and its metadata (a `.pth` file has none). Of a model in parts
    (see `shards`), those of all parts.

    Raises CheckpointError for a file that is no checkpoint."""
    return read_parts(path, _read_file)


def _read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    check_readable(path)
    return read_safetensors(path) if path.suffix.lower() in SAFETENSORS_SUFFIXES else (read_pth(path), {})


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file under any name, memory-mapped, and its metadata. Raises CheckpointError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OSError) as error:
        raise damaged(path, error) from error
    return check_tensors(path, tensors), metadata


def read_pth(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.pth` file, memory-mapped, `{"state_dict": ...}` unwrapped, and a dictionary that holds only another one,
    as ComfyUI does.

    Raises CheckpointError for a cut file, for anything but tensors in it (nothing in the file is executed), and for the
    pre-2020 format, which cannot be mapped."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            cut = file.read(4) == b"PK\x03\x04"
        if cut:
            raise CheckpointError(f"{path.name} is cut short: its end is missing; download it again.")
        raise CheckpointError(
            f"{path.name} is not a PyTorch zip checkpoint; use the original file or a .safetensors one."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path.name} holds Python objects besides tensors and was not loaded (nothing in it was "
            "executed); use a file from a source you trust, best a .safetensors one."
        ) from error
    except Exception as error:  # a damaged pickle fails wherever it stops making sense: IndexError, struct.error
        raise CheckpointError(f"{path.name} is damaged ({_first_line(error)}); download it again.") from error
    if isinstance(content, dict):
        inner = content.get("state_dict", next(iter(content.values())) if len(content) == 1 else None)
        content = inner if isinstance(inner, dict) else content
    return {name: tensor.detach() for name, tensor in check_tensors(path, content).items()}


def model_class(path: Path) -> str:
    """The name of the network's class in the `config.json` beside a model file, as diffusers writes it; empty if there is none."""
    try:
        content = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        return str(content.get("_class_name", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def check_tensors(path: Path, content: object) -> dict[str, torch.Tensor]:
    """`content` if it is a non-empty dictionary of named tensors, else CheckpointError."""
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path.name} holds no named tensors; it is not a model checkpoint.")
    odd = [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, torch.Tensor)]
    if odd:
        raise CheckpointError(
            f"{path.name} is not a model checkpoint: {odd[0]!r} is not a tensor"
            f"{f' (and {len(odd) - 1} more)' if len(odd) > 1 else ''}; a training state cannot be loaded."
        )
    strange = [name for name, value in content.items() if value.layout != torch.strided or value.is_meta]
    if strange:
        raise CheckpointError(
            f"{path.name} is not a model checkpoint: {strange[0]} is sparse or without values; get the original file."
        )
    return content


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a safetensors file whose reader failed with `error`."""
    cause = _first_line(error)
    if any(mark in cause for mark in _CUT_SAFETENSORS):
        return CheckpointError(f"{path.name} is cut short: its end is missing; download it again.")
    return CheckpointError(f"{path.name} is not a readable safetensors file ({cause}); download it again.")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__

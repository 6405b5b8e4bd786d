"""Reading model files without executing anything in them and without copying them into memory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import safetensors
import torch

from ..errors import CheckpointError
from .archive import map_tensors, read_archive
from .shards import read_parts
from .tensor_pickle import Stored

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
_CONFIG_LIMIT = 1 << 20  # bytes of a config.json
_Tensor = TypeVar("_Tensor", torch.Tensor, Stored)
# How the releases of safetensors report a cut file: older ones by the name of the error, 0.8 in words.
_CUT_SAFETENSORS = ("IncompleteBuffer", "InvalidHeaderLength", "not fully covered", "invalid header length")


def check_readable(path: Path) -> None:
    """Raises CheckpointError with the cause for a file that is not a checkpoint: absent, empty, a web page, a Git LFS
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
    """The tensors of a model file of either format, memory-mapped, and its metadata (a `.pth` file has none). Of a
    model in parts (see `shards`), those of all parts.

    Raises CheckpointError for a file that is not a checkpoint."""
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
    """The tensors of a `.pth` file, memory-mapped, `{"state_dict": ...}` unwrapped, and a dictionary that holds only
    another one, as ComfyUI does.

    Raises CheckpointError for a cut file, for anything but tensors in it (nothing in the file is executed), and for the
    pre-2020 format, which cannot be mapped."""
    return map_tensors(path, stored_tensors(path))


def stored_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a `.pth` file by name, as `read_pth` unwraps them, without mapping it. Raises CheckpointError as
    it does."""
    content = read_archive(path)
    if isinstance(content, dict):
        inner = content.get("state_dict", next(iter(content.values())) if len(content) == 1 else None)
        content = inner if isinstance(inner, dict) else content
    return _named(path, content, Stored)


def offsets(path: Path) -> dict[str, int]:
    """Where each tensor of a file of either format begins, in bytes, under the names of `read`. Raises
    CheckpointError."""
    if path.suffix.lower() not in SAFETENSORS_SUFFIXES:
        return {name: tensor.offset for name, tensor in stored_tensors(path).items()}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def model_class(path: Path) -> str:
    """The name of the network's class in the `config.json` beside a model file, as diffusers writes it; empty if there
    is none."""
    config = path.with_name("config.json")
    try:
        if not config.is_file() or config.stat().st_size > _CONFIG_LIMIT:
            return ""
        return str(json.loads(config.read_text(encoding="utf-8")).get("_class_name", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


def check_tensors(path: Path, content: object) -> dict[str, torch.Tensor]:
    """`content` if it is a non-empty dictionary of named tensors, else CheckpointError."""
    return _named(path, content, torch.Tensor)


def _named(path: Path, content: object, kind: type[_Tensor]) -> dict[str, _Tensor]:
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path.name} holds no named tensors; it is not a model checkpoint.")
    others = [name for name, value in content.items() if not isinstance(name, str) or not isinstance(value, kind)]
    if others:
        raise CheckpointError(
            f"{path.name} is not a model checkpoint: {others[0]!r} is not a tensor"
            f"{f' (and {len(others) - 1} more)' if len(others) > 1 else ''}; a training state cannot be loaded."
        )
    return dict(content)


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a safetensors file whose reader failed with `error`."""
    cause = _first_line(error)
    if any(text in cause for text in _CUT_SAFETENSORS):
        return CheckpointError(f"{path.name} is cut short: its end is missing; download it again.")
    return CheckpointError(f"{path.name} is not a readable safetensors file ({cause}); download it again.")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__

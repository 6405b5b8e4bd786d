"""Encoded prompts on disk, so that a prompt used before needs no text encoder.

An entry is one safetensors file named by its key. It appears whole by a rename and never changes, so servers may share
the folder. Its modification time is when it was last used: the entry unused for longest is removed first."""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path

import safetensors.torch
import torch

from .convert.output import SUFFIX, replacing
from .errors import TurboError

logger = logging.getLogger("turbodiffusion")

LIMIT = 2_000_000_000  # bytes
_DIGEST = "sha256"


def cache_key(**parts: str | int) -> str:
    """A file name of hexadecimal digits for everything that decides an entry's content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TextCache:
    """Named tensors by key in `folder`, at most `limit` bytes of them. Neither method raises: what cannot be read is
    absent, what cannot be written is not kept, and a warning says so."""

    def __init__(self, folder: Path, limit: int = LIMIT):
        self._folder, self._limit = folder, limit

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors kept under `key`, in memory, or None. A damaged entry is removed."""
        path = self._path(key)
        if not path.is_file():  # absent, or a FIFO or device, which may never end
            return None
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("The cached prompt %s cannot be read (%s); it is encoded again.", path, error.strerror)
            return None
        try:
            tensors = _unpack(content)
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
            logger.warning("The cached prompt %s is damaged (%s); it is encoded again.", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(path)
        return tensors

    def put(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        """Keeps the tensors, dropping the entries unused for longest to stay within the limit."""
        content = _pack(tensors)
        if len(content) > self._limit:
            return
        try:
            self._make_room(len(content))
            with replacing(self._path(key), overwrite=True) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except (TurboError, OSError) as error:
            logger.warning("The encoded prompt was not kept in %s: %s", self._folder, error)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{SUFFIX}"

    def _make_room(self, size: int) -> None:
        entries, total = [], 0
        for path in self._folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another server was quicker
                status = path.stat()
                if path.suffix == SUFFIX:
                    entries.append((status.st_mtime_ns, status.st_size, path))
                    total += status.st_size
        for _, freed, path in sorted(entries):
            if total + size <= self._limit:
                return
            path.unlink(missing_ok=True)
            total -= freed


def _pack(tensors: dict[str, torch.Tensor]) -> bytes:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(tensors, {_DIGEST: _digest(tensors)})


def _unpack(content: bytes) -> dict[str, torch.Tensor]:
    """The tensors of an entry. Raises ValueError, KeyError, RuntimeError or SafetensorError for a damaged one."""
    tensors = safetensors.torch.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    if header.get("__metadata__", {}).get(_DIGEST) != _digest(tensors):
        raise ValueError("its checksum differs")
    return tensors


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

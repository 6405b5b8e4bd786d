"""The output file of a conversion: checks its name and place, and makes it appear complete or not at all."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from ..checkpoint.shards import is_part
from ..errors import TurboError

SUFFIX = ".safetensors"
PARTIAL = ".partial"  # not a suffix that ComfyUI lists
_LONGEST, _LONGEST_PATH = 200, 1000  # bytes; most systems allow 255 for a name, and the partial file's is longer
_LEFTOVER = re.compile(rf".+{re.escape(SUFFIX)}\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
_FORBIDDEN = re.compile(r'[<>:"|?*]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # Windows' own, whatever the suffix
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_name(name: str) -> str:
    """The name of an output file relative to its folder, with its suffix. Raises TurboError for one that would leave
    the folder or is not that of a safetensors file."""
    cleaned = name.strip().replace("\\", "/")
    parts = PurePosixPath(cleaned).parts
    if not parts or cleaned.endswith("/"):
        raise TurboError(f"output_name is {name!r}: give the new file a name.")
    rooted = PurePosixPath(cleaned).is_absolute() or PureWindowsPath(name.strip()).drive
    if rooted or ".." in cleaned.split("/"):
        raise TurboError(
            f"output_name is {name!r}: give a name inside the diffusion_models folder, without a drive, a leading "
            "slash or `..`."
        )
    if not all(map(_is_portable, parts)) or len(cleaned.encode()) > _LONGEST_PATH:
        raise TurboError(
            f"output_name is {name!r}, which is no file name on every system; use letters, digits, - and _."
        )
    if is_part(parts[-1]) or is_part(parts[-1] + SUFFIX):
        raise TurboError(
            f"output_name is {name!r}, which is how one of several files of a model is named; choose another."
        )
    suffix = PurePosixPath(cleaned).suffix
    if suffix.lower() == SUFFIX:
        return cleaned
    if suffix.lower() in (".pth", ".pt", ".ckpt", ".bin", ".sft", ".gguf", ".pkl"):
        raise TurboError(f"output_name is {name!r}: the new file is a safetensors file, so end its name in {SUFFIX}.")
    return cleaned + SUFFIX  # a dot in the name, as in Wan2.2, is not a suffix


def _is_portable(part: str) -> bool:
    """Whether Linux, macOS and Windows all take it as the name of a file or folder, and every character is visible in a
    list."""
    return (
        part.isprintable()
        and not _FORBIDDEN.search(part)
        and not _DEVICES.fullmatch(part)
        and part[-1] not in ". "
        and len(part.encode()) <= _LONGEST
    )


def check_free(path: Path, overwrite: bool) -> None:
    """Raises TurboError if `path` is a folder or a file that may not be replaced, or if one of its parents is a
    file."""
    in_the_way = next((folder for folder in path.parents if folder.exists()), path)
    if not in_the_way.is_dir():
        raise TurboError(f"{in_the_way.name} is a file, so {path.name} cannot go into it; choose another output_name.")
    if path.is_dir():
        raise TurboError(f"{path.name} is a folder; choose another output_name.")
    if path.exists() and not overwrite:
        raise TurboError(f"{path.name} exists already; set overwrite to replace it, or choose another output_name.")


def check_space(path: Path, size: int) -> None:
    """Raises TurboError if the disk of `path` has no room for `size` bytes."""
    folder = next(folder for folder in path.parents if folder.exists())
    free = shutil.disk_usage(folder).free
    if free < size:
        raise TurboError(
            f"{path.name} needs {size / 1e9:.2f} GB and the disk of {folder} has {free / 1e9:.2f} GB free; make room "
            "or choose smaller weights."
        )


@contextlib.contextmanager
def replacing(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A new binary file beside `path` that takes its place when the block ends, and is removed if the block raises
    anything.

    What killed runs left behind in that folder is removed first. Raises TurboError when the disk is full or the file
    cannot be written, and when another file has appeared at `path` meanwhile and `overwrite` is false."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        partial, file = _new_partial(path)
        with file:
            yield file
            check_free(path, overwrite)
            if os.name == "nt":
                file.close()  # Windows cannot move an open file
            os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(partial)
        if error.errno in _FULL:
            raise TurboError(f"The disk became full while writing {path.name}; make room and try again.") from error
        raise TurboError(f"{path.name} could not be written ({error.strerror or error}); check the folder.") from error
    except BaseException:  # also ComfyUI's interrupt
        _remove(partial)
        raise


def _new_partial(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked while it is written. If another process takes it for a leftover and removes it
    before it is locked, a new one is made."""
    while True:
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        file = partial.open("x+b")
        _lock(file)
        if partial.exists():
            return partial, file
        file.close()


def _remove(partial: Path | None) -> None:
    with contextlib.suppress(OSError):
        if partial is not None:
            partial.unlink(missing_ok=True)


def _lock(file: BinaryIO) -> None:
    """Locks the file until it is closed or this process ends. On Windows an open file cannot be removed anyway."""
    if os.name != "nt":
        import fcntl

        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)


def remove_leftovers(folder: Path) -> None:
    """Removes the partial files in `folder` that no process is writing; a folder that cannot be listed is left as it
    is."""
    with contextlib.suppress(OSError):
        for leftover in folder.iterdir():
            if _LEFTOVER.fullmatch(leftover.name) and leftover.is_file():
                _remove_unlocked(leftover)


def _remove_unlocked(leftover: Path) -> None:
    with contextlib.suppress(OSError):  # also a lock that is held, and a file system without locks
        if os.name == "nt":
            leftover.unlink()
            return
        import fcntl

        with leftover.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()  # while locked: its process may have made it just now, and then waits for the lock


def _sync_folder(folder: Path) -> None:
    """Makes the new name last through a power failure, where folders can be synced."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

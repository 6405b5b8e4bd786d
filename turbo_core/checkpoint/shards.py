"""Checkpoints in several files, as diffusers writes them: `NAME-00001-of-00008.safetensors` ... and
`NAME.safetensors.index.json`, which says in which of them each tensor is. Any of these files stands for the whole
checkpoint."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..errors import CheckpointError
from .keys import refuse_two_spellings
from .metadata import check_metadata

INDEX_SUFFIX = ".index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.[A-Za-z]+)$")
_INDEX_LIMIT = 1 << 26  # bytes; that of LingBot-World has 0.2 MB
_MOST = 1000  # files
_LISTED = 5
_LONGEST = 255  # bytes of a file's name, on most systems

Tensors = dict[str, torch.Tensor]


def is_part(name: str) -> bool:
    """Whether a file of that name is one of several that make up a checkpoint."""
    return _SHARD.fullmatch(name) is not None


def files_of(path: Path) -> list[Path]:
    """The files that make up the checkpoint at `path`: those an index names, those a file's own name counts, or the
    file alone.

    Raises CheckpointError for a file that is not an index, and for parts that are missing."""
    found = _SHARD.match(path.name)
    if path.name.endswith(INDEX_SUFFIX):
        names = sorted(set(_weight_map(path).values()))
    elif found is not None:
        names = _numbered(path, found)
    else:
        return [path]
    parts = [path.with_name(name) for name in names]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise CheckpointError(
            f"{path.name} is a model in {len(parts)} parts, of which {len(missing)} are missing: "
            f"{', '.join(missing[:_LISTED])}"
            f"{more}; download them into the same folder."
        )
    return parts


def read_parts(
    path: Path, read_file: Callable[[Path], tuple[Tensors, dict[str, str]]]
) -> tuple[Tensors, dict[str, str]]:
    """The tensors of all files of the checkpoint at `path`, and the first file's metadata; `read_file` reads one file.

    Raises CheckpointError if a tensor is in two files, under two names, or not in the file that the index names, and
    for metadata that cannot be read."""
    tensors: Tensors = {}
    metadata: dict[str, str] = {}
    places: dict[str, str] = {}
    for part in files_of(path):
        own, own_metadata = read_file(part)
        twice = next((key for key in own if key in tensors), None)
        if twice is not None:
            raise CheckpointError(
                f"{path.name}: {twice} is both in {places[twice]} and in {part.name}; these are parts of different "
                "models, "
                "download them again into a folder of their own."
            )
        places |= dict.fromkeys(own, part.name)
        tensors |= own
        metadata = metadata or own_metadata
    if path.name.endswith(INDEX_SUFFIX):
        for key, name in _weight_map(path).items():
            if places.get(key) != name:
                raise CheckpointError(
                    f"{path.name} says that {name} holds {key}, and it does not; download {name} again."
                )
    refuse_two_spellings(path.name, tensors)
    check_metadata(path.name, metadata)
    return tensors, metadata


def choices(names: Iterable[str], exists: Callable[[str], bool]) -> list[str]:
    """A list of model files with one entry for each checkpoint in parts: its index if there is one (`exists` tells),
    else its first part. Names may have folders; what is in one part stays as it is."""
    listed: dict[str, None] = {}
    for name in names:
        found = _SHARD.match(name)
        if found is None:
            listed[name] = None
            continue
        index = f"{found['stem']}{found['suffix']}{INDEX_SUFFIX}"
        first = f"{found['stem']}-{1:05}-of-{found['count']}{found['suffix']}"
        listed[index if exists(index) else first if exists(first) else name] = None
    return list(listed)


def _numbered(path: Path, found: re.Match) -> list[str]:
    count = int(found["count"])
    if not 0 < int(found["number"]) <= count <= _MOST:
        raise CheckpointError(f"{path.name} is named like part {found['number']} of {found['count']}; rename it.")
    return [f"{found['stem']}-{i:05}-of-{found['count']}{found['suffix']}" for i in range(1, count + 1)]


def _weight_map(index: Path) -> dict[str, str]:
    """The file name of each tensor. A name with a folder in it is refused, so that an index reaches nothing but its own
    folder."""
    try:
        if not index.is_file() or index.stat().st_size > _INDEX_LIMIT:  # a FIFO or a device would be read for ever
            raise ValueError
        places = json.loads(index.read_text(encoding="utf-8-sig"))["weight_map"]
        names = set(places.values())
        if not names or len(names) > _MOST or not all(_is_plain(name) for name in names):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{index.name} does not list the files of a model (weight_map, names in the same folder); download it "
            "again."
        ) from None
    return places


def _is_plain(name: object) -> bool:
    return (
        isinstance(name, str) and bool(name.strip(". ")) and not re.search(r"[/\\:]", name)
        and name.isprintable() and len(name.encode()) <= _LONGEST
        and not name.endswith(INDEX_SUFFIX)
    )  # fmt: skip

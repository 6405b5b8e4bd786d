"""The archives that `torch.save` writes (`.pth`, `.pt`, `.ckpt`, `.bin`), read without an unpickler.

An archive is a zip file of uncompressed records under one folder: `data.pkl` describes the content (see
`tensor_pickle`), `data/N` holds the bytes of a storage."""

import struct
import zipfile
from pathlib import Path
from typing import NoReturn

import torch

from ..errors import CheckpointError
from .tensor_pickle import Record, Stored, extent, interpret

PICKLE_LIMIT = 16 << 20  # bytes of the description; that of an int8 model of 40 layers has 0.2 MB
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def records(path: Path) -> list[Record]:
    """The records of an archive in the order of its directory.

    Raises CheckpointError for a file that is not such an archive, is cut, or has a compressed record."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            cut = file.read(4) == b"PK\x03\x04"
        if cut:
            raise CheckpointError(f"{path.name} is cut short: its end is missing; download it again.")
        raise CheckpointError(
            f"{path.name} is not a PyTorch zip checkpoint; use the original file or a .safetensors one."
        )
    found = []
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            total = path.stat().st_size
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise CheckpointError(
                        f"{path.name} is a compressed zip file, not one that torch.save wrote; get the original file."
                    )
                file.seek(info.header_offset)
                mark, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
                if mark != b"PK\x03\x04" or start + info.file_size > total:
                    _damaged(path, f"the record {info.filename[:100]} is not where the directory says")
                found.append(Record(info.filename, start, info.file_size, info.CRC))
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, struct.error, ValueError, OSError, NotImplementedError) as error:
        _damaged(path, str(error))
    return found


def read_archive(path: Path) -> object:
    """What an archive holds: dictionaries, lists, plain values, and a `Stored` for each tensor.

    Raises CheckpointError for a damaged archive, for any Python object besides these, and for a tensor that is sparse,
    has no values, or has more elements than its storage."""
    listed = records(path)
    root = listed[0].name.partition("/")[0] if listed else ""
    by_name = {record.name: record for record in listed}
    if len(by_name) != len(listed):
        _damaged(path, "two of its records have one name")
    description = by_name.get(f"{root}/data.pkl")
    if description is None:
        _damaged(path, "it has no data.pkl")
    if description.size > PICKLE_LIMIT:
        raise CheckpointError(
            f"{path.name} is not a model checkpoint: its description takes {description.size / 1e6:.0f} MB, and at "
            "most "
            f"{PICKLE_LIMIT / 1e6:.0f} MB are read; get the original file."
        )
    with path.open("rb") as file:
        order = by_name.get(f"{root}/byteorder")
        if order is not None:
            file.seek(order.start)
            if file.read(min(order.size, 6)) != b"little":
                raise CheckpointError(
                    f"{path.name} was written on a big-endian machine, which is unsupported; use a .safetensors file."
                )
        file.seek(description.start)
        content = file.read(description.size)
    storages = {name.removeprefix(f"{root}/data/"): record for name, record in by_name.items()}
    return interpret(path, content, storages)


def map_tensors(path: Path, stored: dict[str, Stored]) -> dict[str, torch.Tensor]:
    """The tensors of an archive, mapped into memory."""
    whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    tensors = {}
    for name, each in stored.items():
        count = extent(each.size, each.stride)
        storage = whole[each.offset : each.offset + count * each.dtype.itemsize]
        tensors[name] = torch.empty(0, dtype=each.dtype).set_(storage, 0, each.size, each.stride)
    return tensors


def _damaged(path: Path, cause: str) -> NoReturn:
    raise CheckpointError(f"{path.name} is damaged ({cause}); download it again.")

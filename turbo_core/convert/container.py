"""The safetensors format, written and checked one part of a tensor at a time: the header first, then each tensor at its
offset."""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import TurboError
from .codec import TensorInfo

# As safetensors names them; an older torch lacks some.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    **{
        getattr(torch, dtype): name
        for dtype, name in (
            ("float8_e8m0fnu", "F8_E8M0"),
            ("float8_e4m3fnuz", "F8_E4M3FNUZ"),
            ("float8_e5m2fnuz", "F8_E5M2FNUZ"),
            ("uint16", "U16"),
            ("uint32", "U32"),
            ("uint64", "U64"),
        )
        if hasattr(torch, dtype)
    },
}
_CHUNK = 1 << 23
Advance = Callable[[int], None]  # called with the number of bytes just done; may raise


class Container:
    """The layout of a file: `header` (its length included) and `spans`, the first and last offset of each tensor in the
    file.

    Wider types come first, so that each tensor is aligned to its type."""

    def __init__(self, infos: Iterable[TensorInfo], metadata: Mapping[str, str]):
        entries: dict = {"__metadata__": dict(metadata)}
        end = 0
        for info in sorted(infos, key=lambda info: -info.dtype.itemsize):
            if info.name in entries:
                raise ValueError(f"{info.name} would be written twice")
            if info.dtype not in _NAMES:
                raise TurboError(f"{info.name} holds {info.dtype}, which a safetensors file cannot; use the bf16 file.")
            start, end = end, end + info.size
            entries[info.name] = {
                "dtype": _NAMES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        self.header = struct.pack("<Q", len(text)) + text
        self.spans = {
            name: (len(self.header) + entry["data_offsets"][0], len(self.header) + entry["data_offsets"][1])
            for name, entry in entries.items()
            if name != "__metadata__"
        }
        self.size = len(self.header) + end

    def write(self, file: BinaryIO, parts: Iterable[tuple[str, torch.Tensor]], advance: Advance) -> dict[str, int]:
        """Writes the header, then the parts, those of one tensor in order, and syncs. Returns each tensor's CRC-32.

        Raises ValueError if a tensor gets more or fewer bytes than its place has."""
        file.write(self.header)
        advance(len(self.header))
        places = {name: start for name, (start, _) in self.spans.items()}
        checksums = dict.fromkeys(self.spans, 0)
        for name, part in parts:
            data = memoryview(part.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            if places[name] + len(data) > self.spans[name][1]:
                raise ValueError(f"{name} is larger than planned")
            file.seek(places[name])
            for begin in range(0, len(data), _CHUNK):
                chunk = data[begin : begin + _CHUNK]
                file.write(chunk)
                checksums[name] = zlib.crc32(chunk, checksums[name])
                advance(len(chunk))
            places[name] += len(data)
        short = [name for name, (_, end) in self.spans.items() if places[name] != end]
        if short:
            raise ValueError(f"{short[0]} is smaller than planned")
        file.flush()
        os.fsync(file.fileno())
        return checksums

    def verify(self, path: Path, checksums: Mapping[str, int], name: str, advance: Advance) -> None:
        """Reads the file back, from the disk where the system allows that, and raises TurboError naming it `name` if
        anything differs from what was written."""
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            damaged = [] if _read(file, len(self.header)) == self.header else ["the header"]
            if os.fstat(file.fileno()).st_size != self.size:
                damaged.append("the size")
            advance(len(self.header))
            for tensor, (start, end) in self.spans.items():
                checksum = 0
                file.seek(start)
                for begin in range(start, end, _CHUNK):
                    chunk = _read(file, min(_CHUNK, end - begin))
                    checksum = zlib.crc32(chunk, checksum)
                    advance(len(chunk))
                if checksum != checksums[tensor]:
                    damaged.append(tensor)
        if damaged:
            raise TurboError(
                f"{name} was not stored as it was written: {damaged[0]} differs when read back; convert again, to "
                "another "
                "disk if it happens twice."
            )


def _read(file: BinaryIO, size: int) -> bytes:
    """Up to `size` bytes; fewer only at the end of the file."""
    parts = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

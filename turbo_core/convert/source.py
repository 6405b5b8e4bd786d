"""The checkpoints that go into a conversion."""

import dataclasses
import functools
import hashlib
import zlib
from pathlib import Path

import torch

from ...kernels import nf4_dequantize
from ..checkpoint.archive import records
from ..checkpoint.comfy_quant import SIDES
from ..checkpoint.identify import identify
from ..checkpoint.layout import PROJ_L, TILED, WanSpec
from ..checkpoint.packed import STATE, Packed, packed_weights
from ..checkpoint.read import SAFETENSORS_SUFFIXES, read
from ..checkpoint.shards import files_of
from ..checkpoint.tensor_pickle import Record
from ..errors import CheckpointError
from . import codec
from .container import Advance
from .file_tensors import FileTensors

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint: its spec and its tensors in ComfyUI's names, mapped from its file or files; `packed`: its 4-bit
    weights.

    The values of a tensor are taken from `files`, not from the mapping: a file that is cut while it is mapped ends the
    process."""

    path: Path
    spec: WanSpec
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    packed: dict[str, Packed]
    files: FileTensors

    @classmethod
    def open(cls, path: Path) -> "Source":
        """Raises CheckpointError for a file that is damaged, incomplete, not Wan, or quantized in a way that is not
        read."""
        tensors, metadata = read(path)
        files = FileTensors(path, tensors)
        if "_quantization_metadata" in metadata or any(name.endswith("scaled_fp8") for name in tensors):
            raise CheckpointError(
                f"{path.name} is quantized in an older form of ComfyUI's, which cannot be converted; use the bf16 file."
            )
        spec, tensors = identify(path.name, tensors, metadata)
        return cls(path, spec, tensors, metadata, packed_weights(path.name, tensors), files)

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of all tensors but scales and `comfy_quant`, which belong to their weight."""
        sides = {
            side
            for name in self.tensors
            if name.endswith(".weight") and not isinstance(self.format(name), torch.dtype)
            for side in self.stored(name)[1:]
        }
        return [name for name in self.tensors if name not in sides]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, of a 4-bit weight that of its values."""
        return self.packed[name].shape if name in self.packed else tuple(self.tensors[name].shape)

    def format(self, name: str) -> codec.Format:
        """As `codec.format_of`; of a 4-bit weight its kind."""
        if name in self.packed:
            return self.packed[name].kind
        try:
            return codec.format_of(self.tensors, name)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path.name}: {error}") from error

    def check_open(self) -> None:
        """Raises CheckpointError if a weight is stored in a way that nothing can be merged into."""
        for name in self.names:
            if name not in self.packed and not codec.is_open(self.format(name)):
                raise CheckpointError(
                    f"{self.path.name}: {name} is stored as {self.format(name)}, into which nothing can be merged; "
                    "use the bf16 file."
                )

    def part(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of a tensor, as a matrix, read from its file as they are stored. Raises CheckpointError if the file
        changed."""
        return self.files.read(self.tensors[name], rows)

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """As `codec.decode`; the message of its CheckpointError names this file."""
        if name in self.packed:
            return codec.finite(name, self._unpacked(name, rows))
        try:
            return codec.decode(self.tensors, self.part, name, rows)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path.name}: {error}") from error

    def stored(self, name: str) -> list[str]:
        """The tensor and those that belong to it, as they are in the file."""
        if name in self.packed:
            state = self.packed[name]
            return [name, *state.sides(name), f"{name}{STATE}{state.kind}"]
        if isinstance(self.format(name), torch.dtype):
            return [name]
        layer = name.removesuffix(".weight")
        return [name, *(f"{layer}.{side}" for side in SIDES if f"{layer}.{side}" in self.tensors)]

    def _unpacked(self, name: str, rows: slice) -> torch.Tensor:
        """Rows of a 4-bit weight in float32. All values that share a scale of scales with them are dequantized too."""
        state = self.packed[name]
        width = state.shape[1]
        unit = state.blocksize * max(state.nested_blocksize, 1)
        start, end = rows.start * width, rows.stop * width
        first = start // unit * unit
        last = min(-(-end // unit) * unit, state.shape[0] * width)
        blocks = slice(first // state.blocksize, -(-last // state.blocksize))
        nested = slice(first // unit, -(-last // unit))

        def side(kind: str, part: slice) -> torch.Tensor:
            return self.part(f"{name}.{kind}", part).flatten()

        double = bool(state.nested_blocksize)
        values = nf4_dequantize(
            self.part(name, slice(first // 2, (last + 1) // 2)).flatten(),
            side("absmax", blocks),
            side("quant_map", slice(None)),
            side("nested_absmax", nested) if double else None,
            side("nested_quant_map", slice(None)) if double else None,
            state.nested_offset,
            state.blocksize,
            state.nested_blocksize,
            1,
            last - first,
            torch.float32,
        )
        return values[0, start - first : end - first].view(-1, width)


def size(path: Path) -> int:
    """Bytes of a checkpoint, all its files together."""
    return sum(part.stat().st_size for part in files_of(path))


def is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one of those that TurboDiffusion quantizes: the weights of the blocks' linears but
    `proj_l`."""
    layer = name.removesuffix(".weight")
    return name.startswith(TILED) and layer != name and len(shape) == 2 and not layer.endswith(PROJ_L)


def sha256(path: Path, advance: Advance) -> str:
    """The SHA-256 of a checkpoint's file, or of its files one after the other; each is read once from its beginning.

    Raises CheckpointError if a record of a `.pth` file differs from the checksum that the file holds."""
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    for part in files_of(path):
        checksums = _Checksums([] if part.suffix.lower() in SAFETENSORS_SUFFIXES else records(part))
        with part.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                data = memoryview(buffer)[:count]
                digest.update(data)
                checksums.update(data)
                advance(count)
        if wrong := checksums.wrong():
            raise CheckpointError(f"{part.name} is damaged (the checksum of {wrong} differs); download it again.")
    return digest.hexdigest()


class _Checksums:
    """Computes the CRC-32 of each record of an archive, whose bytes `update` takes in order. A record without one, as
    torch writes on request (`torch.serialization.set_crc32_options`), is not checked."""

    def __init__(self, listed: list[Record]):
        self._records = sorted((record for record in listed if record.crc), key=lambda record: record.start)
        self._found = dict.fromkeys(self._records, 0)
        self._first = self._place = 0  # the first record that is not complete, and the bytes taken so far

    def update(self, data: memoryview) -> None:
        begin, self._place = self._place, self._place + len(data)
        for index in range(self._first, len(self._records)):
            record = self._records[index]
            end = record.start + record.size
            if record.start >= self._place:
                break
            part = data[max(record.start - begin, 0) : end - begin]
            self._found[record] = zlib.crc32(part, self._found[record])
            if end <= self._place and index == self._first:
                self._first += 1

    def wrong(self) -> str:
        """The name of a record that differs, empty if there is none."""
        return next((record.name for record, crc in self._found.items() if crc != record.crc), "")

"""The checkpoints that go into a conversion."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import torch

from ..checkpoint.identify import identify
from ..checkpoint.layout import PROJ_L, WanSpec
from ..checkpoint.read import read
from ..errors import CheckpointError
from . import codec
from .container import Advance

_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint file: its spec and its tensors in ComfyUI's names, mapped from the file."""

    path: Path
    spec: WanSpec
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> "Source":
        """Raises CheckpointError for a file that is damaged, incomplete, not Wan, or quantised in a way that is not read."""
        tensors, metadata = read(path)
        if "_quantization_metadata" in metadata or any(name.endswith("scaled_fp8") for name in tensors):
            raise CheckpointError(
                f"{path.name} is quantised in an older form of ComfyUI's, which cannot be converted; use the bf16 file."
            )
        spec, tensors = identify(path.name, tensors, metadata)
        return cls(path, spec, tensors, metadata)

    @functools.cached_property
    def names(self) -> list[str]:
        """The tensors but for scales and marks, which belong to their weight."""
        sides = {
            f"{name.removesuffix('.weight')}.{side}"
            for name in self.tensors
            if name.endswith(".weight") and not isinstance(self.format(name), torch.dtype)
            for side in codec.SIDES
        }
        return [name for name in self.tensors if name not in sides]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def format(self, name: str) -> codec.Format:
        return codec.format_of(self.tensors, name)

    def rows(self, name: str, rows: slice) -> torch.Tensor:
        """As `codec.decode`; the message of its CheckpointError names this file."""
        try:
            return codec.decode(self.tensors, name, rows)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path.name}: {error}") from error

    def stored(self, name: str) -> list[str]:
        """The tensor and those that belong to it, as they are in the file."""
        if isinstance(self.format(name), torch.dtype):
            return [name]
        layer = name.removesuffix(".weight")
        return [name, *(f"{layer}.{side}" for side in codec.SIDES if f"{layer}.{side}" in self.tensors)]


def is_block_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is one of those that TurboDiffusion quantises: the weights of the blocks' linears but `proj_l`."""
    layer = name.removesuffix(".weight")
    return name.startswith("blocks.") and layer != name and len(shape) == 2 and not layer.endswith(PROJ_L)


def sha256(path: Path, advance: Advance) -> str:
    """Of a file, in one pass from its beginning."""
    digest, buffer = hashlib.sha256(), bytearray(_CHUNK)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            advance(count)
    return digest.hexdigest()

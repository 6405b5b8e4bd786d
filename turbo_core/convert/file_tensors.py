"""Values of a checkpoint's tensors, read from its files a part at a time.

Reading a mapped file that was cut in the meantime ends the process (SIGBUS); reading the file itself fails with an
error."""

from collections.abc import Mapping
from pathlib import Path

import torch

from ..checkpoint.read import offsets
from ..checkpoint.shards import files_of
from ..checkpoint.tensor_pickle import extent
from ..errors import CheckpointError
from .codec import as_matrix


class FileTensors:
    """Where the mapped tensors of a checkpoint are in its files. `tensors`: as `read` returns them; views of them that
    begin at the same byte (renamed, reshaped) are found too."""

    def __init__(self, path: Path, tensors: Mapping[str, torch.Tensor]):
        self._places: dict[int, tuple[Path, int]] = {}
        for part in files_of(path):
            for name, offset in offsets(part).items():
                self._places[tensors[name].data_ptr()] = part, offset

    def read(self, tensor: torch.Tensor, rows: slice) -> torch.Tensor:
        """Rows of a tensor as a matrix (see `as_matrix`), a copy. Raises CheckpointError if its file is shorter than it
        was."""
        if not tensor.numel():
            return as_matrix(tensor)[rows].clone()
        path, offset = self._places[tensor.data_ptr()]
        if tensor.is_contiguous():
            part = as_matrix(tensor)[rows]
            return _read(path, offset + part.data_ptr() - tensor.data_ptr(), part.numel(), part.dtype).view(part.shape)
        elements = _read(path, offset, extent(tuple(tensor.shape), tensor.stride()), tensor.dtype)
        return as_matrix(elements.as_strided(tensor.shape, tensor.stride()))[rows].clone()


def _read(path: Path, offset: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` elements that begin at a byte offset of a file."""
    data = bytearray(count * dtype.itemsize)
    view, done = memoryview(data), 0
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            while done < len(view) and (read := file.readinto(view[done:])):
                done += read
    except OSError as error:
        raise CheckpointError(
            f"{path.name} cannot be read ({error.strerror}); check its rights and the disk."
        ) from error
    if done < len(view):
        raise CheckpointError(
            f"{path.name} became shorter while it was read; wait until nothing writes to it, or download it again."
        )
    return torch.frombuffer(data, dtype=dtype)

"""Which bytes of a tensor hold a value: memory from torch.empty does not until a kernel or the host writes it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch


class EmptyTensors:
    """The tensors that torch.empty and its relatives made within `watching`, and which of their bytes kernels have
    written.

    They are kept alive and filled with 0xFF (NaN, -1), so that a place nothing wrote shows in a result too."""

    def __init__(self):
        self._tensors: dict[int, tuple[torch.Tensor, int, np.ndarray]] = {}

    def _add(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storage.fill_(0xFF)
        self._tensors[storage.data_ptr()] = (tensor, tensor._version, np.zeros(storage.nbytes(), np.uint8))
        return tensor

    def written(self, tensor: torch.Tensor, start: int, size: int) -> np.ndarray | None:
        """For triton_driver.Session: a view of the marks of the bytes from `start`, or None if all hold a value."""
        known = self._tensors.get(tensor.untyped_storage().data_ptr())
        if known is None or known[0]._version != known[1]:  # an in-place operation of the host changed the version
            return None
        offset = start - tensor.untyped_storage().data_ptr()
        return known[2][offset : offset + size]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block new tensors without a value are noted."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
                original = getattr(owner, name)
                patch.setattr(owner, name, lambda *a, original=original, **k: self._add(original(*a, **k)))
            try:
                yield
            finally:
                self._tensors.clear()

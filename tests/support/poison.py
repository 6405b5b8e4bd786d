"""Allocations that reveal what a kernel leaves unwritten, and what it writes past the end."""

import math
from types import ModuleType

import pytest
import torch

_UNWRITTEN = 77  # of whole numbers; floats are NaN
_CANARY = 80  # exact in every format, fp8 included
_CANARIES = 4096  # elements behind each tensor


class PoisonedTorch:
    """torch, whose `empty` fills tensors with NaN or 77 and puts a canary behind them."""

    def __init__(self):
        self.buffers = []

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, *, dtype, device):
        buffer = torch.empty(math.prod(shape) + _CANARIES, dtype=dtype, device=device)
        buffer.fill_(math.nan if dtype.is_floating_point else _UNWRITTEN)
        buffer[-_CANARIES:] = _CANARY
        self.buffers.append(buffer)
        return buffer[:-_CANARIES].view(shape)


def poisoned_memory(*modules: ModuleType):
    """A fixture for every test of a file: `torch.empty` of these modules returns poisoned memory, and at the end every
    canary is intact."""

    @pytest.fixture(autouse=True)
    def poisoned(monkeypatch):
        memory = PoisonedTorch()
        for module in modules:
            monkeypatch.setattr(module, "torch", memory)
        yield
        assert all((buffer[-_CANARIES:].float() == _CANARY).all() for buffer in memory.buffers)

    return poisoned

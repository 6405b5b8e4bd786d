"""The collectives between ranks, by torch.distributed, in a process group of our own: another pack may hold the global
one."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final, Literal

import torch
import torch.distributed as dist

from ..errors import TurboError

Backend = Literal["nccl", "gloo"]
TIMEOUT: Final = timedelta(minutes=5)  # of a collective; the first step of a rank may compile kernels
LOCAL: Final = "127.0.0.1"

# torch's stubs know neither.
_TCPStore: Any = getattr(dist, "TCPStore", None)
_GlooOptions: Any = getattr(getattr(dist, "ProcessGroupGloo", None), "_Options", None)


class GroupError(TurboError):
    """Ranks could not reach each other: one has failed or ended, or a collective took too long."""


class Group:
    """The ranks of a run. Every rank calls the same methods in the same order, with tensors on its own device.

    `sent` counts the bytes that this rank has sent to others, without broadcasts."""

    def __init__(self, group: Any, rank: int, size: int):
        """`group`: a ProcessGroupGloo or ProcessGroupNCCL, as from `connect`."""
        self.rank, self.size, self.sent = rank, size, 0
        self._group = group

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Fills `tensor` with that of rank 0, in place."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self._run("broadcast", [_as_bytes(tensor)], options)
        return tensor

    def to_heads(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, shares: Sequence[slice]) -> torch.Tensor:
        """q, k and v [B, tokens of this rank, H, D] -> [3, B, all tokens, H / ranks, D]."""
        batch, own, heads, head_dim = q.shape
        buffer = q.new_empty(self.size, 3, batch, own, heads // self.size, head_dim)
        for i, each in enumerate((q, k, v)):
            buffer[:, i] = each.unflatten(2, (self.size, -1)).movedim(2, 0)
        row = 3 * batch * (heads // self.size) * head_dim
        received = self._all_to_all(buffer, [own * row] * self.size, [_length(share) * row for share in shares])
        parts = [part.view(3, batch, -1, heads // self.size, head_dim) for part in received]
        return torch.cat(parts, dim=2)

    def to_tokens(self, x: torch.Tensor, shares: Sequence[slice]) -> torch.Tensor:
        """x [B, all tokens, H / ranks * D] -> [B, tokens of this rank, H * D]."""
        batch, _, width = x.shape
        own = _length(shares[self.rank])
        parts = [x[:, share] for share in shares]
        received = self._all_to_all(
            torch.cat([part.flatten() for part in parts]),
            [part.numel() for part in parts],
            [batch * own * width] * self.size,
        )
        return torch.cat([part.view(batch, own, width) for part in received], dim=2)

    def gather(self, x: torch.Tensor, shares: Sequence[slice]) -> torch.Tensor:
        """x [B, tokens of this rank, C] -> [B, all tokens, C], on every rank."""
        batch, _, width = x.shape
        received = self._all_to_all(
            x.flatten().repeat(self.size),
            [x.numel()] * self.size,
            [batch * _length(share) * width for share in shares],
        )
        return torch.cat([part.view(batch, -1, width) for part in received], dim=1)

    def abort(self) -> None:
        """Ends the group: collectives that wait, here and on other ranks, raise GroupError."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()

    def _all_to_all(self, x: torch.Tensor, send: list[int], receive: list[int]) -> list[torch.Tensor]:
        """Sends send[r] elements of x to each rank r, in order, and returns receive[r] elements from each."""
        out = x.new_empty(sum(receive))
        size = x.element_size()
        self.sent += size * (sum(send) - send[self.rank])
        splits = [[count * size for count in counts] for counts in (receive, send)]
        self._run("alltoall_base", _as_bytes(out), _as_bytes(x), *splits, dist.AllToAllOptions())
        return list(out.split(receive))

    def _run(self, collective: str, *arguments: Any) -> None:
        if self._group is None:
            raise GroupError("The ranks of this run are not connected any more.")
        try:
            getattr(self._group, collective)(*arguments).wait()
        except RuntimeError as error:
            raise GroupError(f"The GPUs of this run could not reach each other ({_first_line(error)}).") from error


def create_store(host: str, size: int) -> Any:
    """The store by which the ranks of a new group find each other, on rank 0; its `port` is a free one."""
    return _TCPStore(host, 0, size, is_master=True, wait_for_workers=False, timeout=TIMEOUT)


def find_store(host: str, port: int, size: int) -> Any:
    """The store of rank 0, on another rank."""
    return _TCPStore(host, port, size, is_master=False, timeout=TIMEOUT)


def connect(store: Any, host: str, rank: int, size: int, backend: Backend) -> Group:
    """Joins a group, and returns when every rank has. `host` is this machine's address. Raises GroupError."""
    try:
        if backend == "nccl":
            # The default ends the process after an abort or a timeout, and this one may be ComfyUI's.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = TIMEOUT
            return Group(dist.ProcessGroupNCCL(store, rank, size, options), rank, size)
        options = _GlooOptions()
        # By address: the default resolves the host's name, which many machines cannot.
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
        options._timeout = TIMEOUT
        return Group(dist.ProcessGroupGloo(store, rank, size, options), rank, size)
    except RuntimeError as error:
        raise GroupError(f"The GPUs of this run could not be connected ({_first_line(error)}).") from error


def _as_bytes(x: torch.Tensor) -> torch.Tensor:
    """The memory of a contiguous tensor, so that a backend need not know its dtype."""
    return x.view(-1).view(torch.uint8)


def _length(share: slice) -> int:
    count: int = share.stop - share.start
    return count


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

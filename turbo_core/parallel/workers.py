"""What rank 0 asks of the other ranks: to form a group with it, to load a model, to take part in a step."""

import contextlib
import logging
import threading
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from ..errors import TurboError
from .cluster import START_SECONDS, Place, Processes, reported
from .group import LOCAL, TIMEOUT, Group, GroupError, connect, create_store

_END_SECONDS = 30.0  # for a step that was aborted

logger = logging.getLogger("turbodiffusion")


class ProcessEnded(TurboError):
    """The process of another rank has ended."""


class Workers:
    """The other ranks as one model uses them. A step that fails on any rank raises one error here. The next step forms
    a new group, with new processes where one has ended."""

    def __init__(self, place: Place):
        """Has Ray start the processes, without waiting for them. Needs `cluster.join_cluster` to have been called."""
        self.place = place
        self._processes = Processes(place)
        self._found = self._processes.find()
        self._group: Group | None = None
        self._name = ""  # of the group
        self._ranks: list[Any] = []
        self._loaded: list[str] = []  # the names of the models that the other ranks have loaded for this object
        weakref.finalize(self, _forget, self._ranks, self._loaded)

    @property
    def group(self) -> Group:
        """The group of the current step."""
        if self._group is None:
            raise GroupError("The ranks of this run are not connected.")
        return self._group

    def connect(self) -> None:
        """Waits until every rank is in the group. Raises TurboError."""
        found = self._processes.find()
        if found != self._found:
            self._leave()
            self._found, self._loaded[:] = found, []
        if self._group is None:
            self._form_group()

    def _form_group(self) -> None:
        place = self.place
        threads = torch.get_num_threads() // (place.size if place.backend == "gloo" else 1)
        self._ranks[:] = self._processes.ready(self._found, max(1, threads))
        hosts, own_host = [LOCAL] * len(self._ranks), LOCAL
        if place.address:
            own_host = ray.util.get_node_ip_address()
            with reported("The machine of another GPU did not answer"):
                hosts = ray.get([rank.host.remote() for rank in self._ranks], timeout=START_SECONDS)
        self._name = uuid.uuid4().hex
        store = create_store(own_host, place.size)
        joins = [
            rank.call.remote("join", self._name, own_host, store.port, number, place.size, place.backend, host)
            for number, (rank, host) in enumerate(zip(self._ranks, hosts, strict=True), 1)
        ]
        group = connect(store, own_host, 0, place.size, place.backend)
        with reported("The GPUs of this run could not be connected"):
            ray.get(joins, timeout=TIMEOUT.total_seconds())
        self._group = group

    def load(self, name: str, recipe: Callable[[], Mapping[str, Any]], shape: tuple[int, ...]) -> None:
        """Has every other rank load a model, made by a recipe the first time (`Rank.load`). Raises TurboError."""
        new = None if name in self._loaded else recipe()
        calls = [rank.call.remote("load", name, new, shape, self.place.size) for rank in self._ranks]
        with reported("Another GPU could not load the model"):
            ray.get(calls)
        if new is not None:
            self._loaded.append(name)

    @contextlib.contextmanager
    def step(
        self,
        name: str,
        tensors: Mapping[str, torch.Tensor],
        others: Mapping[str, Any],
        attention: Mapping[str, tuple[Any, ...] | None],
    ) -> Iterator[Group]:
        """Within the block the other ranks run the model's network with these arguments (`Rank.step`). Yields the
        group. Raises TurboError for what goes wrong on another rank."""
        group = self.group
        described = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}
        calls = [rank.call.remote("step", self._name, name, described, others, attention) for rank in self._ranks]
        # A rank that fails does not take part in the next collective, for which the others would wait.
        watch = threading.Thread(target=_watch, args=(calls, group), daemon=True)
        watch.start()
        try:
            for tensor in tensors.values():
                group.broadcast(tensor.contiguous())
            yield group
        except BaseException as error:
            fault = self._abort(calls)
            if fault is not None and isinstance(error, GroupError):
                raise fault from error
            raise
        fault = _fault(calls)
        if fault is not None:
            self._abort(calls)
            raise fault

    def _abort(self, calls: list[Any]) -> TurboError | None:
        """Ends the group and what runs in it. Returns what went wrong on another rank, if that came first."""
        self._leave()
        _, waiting = ray.wait(calls, num_returns=len(calls), timeout=_END_SECONDS)
        if waiting:
            self._processes.end()
            return TurboError("The process of another GPU did not end its step, and was ended: queue the prompt again.")
        fault = _fault(calls)
        if isinstance(fault, ProcessEnded):
            self._processes.end()  # Ray may still list a process that has just ended
        return fault

    def unload(self) -> None:
        """Has the other ranks take the models that they loaded for this object off their devices."""
        if self._loaded and ray.is_initialized():
            with contextlib.suppress(RayError):
                ray.get([rank.call.remote("unload", self._loaded) for rank in self._ranks], timeout=_END_SECONDS)

    def _leave(self) -> None:
        """Ends the group on every rank."""
        group, self._group = self._group, None
        if group is not None:
            group.abort()
            for rank in self._ranks:
                rank.call.remote("leave", self._name)


def _forget(ranks: list[Any], models: list[str]) -> None:
    """Drops the other ranks' copies of a model that is gone here. Their part of its group ends with rank 0's."""
    if ray.is_initialized():  # not when Python ends
        for rank in ranks:
            rank.call.remote("forget", models)


def _watch(calls: list[Any], group: Group) -> None:
    """Ends the group as soon as one of these steps has failed."""
    waiting = calls
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        if any(_fault([call]) is not None for call in done):
            group.abort()
            return


def _fault(calls: list[Any]) -> TurboError | None:
    """What went wrong in steps that have ended; None if nothing did. A GroupError only if there is no other fault, of
    which it may be a consequence."""
    faults: dict[str, str] = {}
    for number, call in enumerate(calls, 1):
        try:
            outcome = ray.get(call)
        except RayError:
            outcome = "ended", "its process has ended; if it was killed, it may have been out of RAM"
        if outcome is not None:
            faults.setdefault(outcome[0], f"GPU {number} of this run failed: {outcome[1]}")
    if "memory" in faults:
        return TurboError(f"{faults['memory']}: make the video smaller or shorter, or set gpus to more.")
    for kind, error in (("ended", ProcessEnded), ("error", TurboError), ("group", GroupError)):
        if kind in faults:
            return error(f"{faults[kind].rstrip('.')}; queue the prompt again.")
    return None

"""The processes of the other ranks: Ray actors in one placement group, shared by all models of this process that run on
as many ranks. Ray knows them by name, so nothing here is kept in a global."""

import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..errors import TurboError
from . import actor as actor_module
from .group import Backend

# Namespaces of Ray, which tell what Ray was started for in this process.
_LOCAL, _CLUSTER = "turbodiffusion-parallel-local", "turbodiffusion-parallel-cluster"
_RANK, _MOST_RANKS = "turbodiffusion_rank", 1024  # a resource of the local Ray
START_SECONDS = 180.0  # a process that imports torch and ComfyUI
_ROOM_SECONDS = 60.0
_OBJECT_STORE = 200 << 20  # bytes; only LoRA matrices pass through it, and more than fits goes through files


class Place(NamedTuple):
    """Where ranks run. `address`: of a Ray cluster, empty for this machine. `devices`: on this machine the value of
    CUDA_VISIBLE_DEVICES of each other rank, empty on CPUs. `own_device`: the UUID of rank 0's GPU, or "cpu".
    `comfyui`, `pack`: folders. `options`: of ComfyUI's command line."""

    size: int
    backend: Backend
    address: str
    devices: tuple[str, ...]
    own_device: str
    comfyui: str
    pack: str
    options: dict[str, Any]


def join_cluster(address: str) -> None:
    """Starts Ray on this machine, or joins the cluster that it is part of, for as long as this process lives.

    `address` comes from a workflow, so it does not choose the cluster: whoever runs a cluster can run code here. The
    cluster is the one that this machine was added to by `ray start`, and a given address must be its own. Raises
    TurboError."""
    namespace = _CLUSTER if address else _LOCAL
    if not ray.is_initialized():
        options: dict[str, Any] = {"namespace": namespace, "logging_level": logging.ERROR, "log_to_driver": False}
        if address:
            options["address"] = "auto"
        else:
            # Each rank is given its device here, so that this process keeps its own: Ray need not know of them.
            options |= {"address": "local", "num_cpus": 1, "num_gpus": 0, "resources": {_RANK: _MOST_RANKS}}
            options |= {"object_store_memory": _OBJECT_STORE, "include_dashboard": False}
        start = "this machine is part of no Ray cluster: run ray start on it" if address else "Ray could not be started"
        with reported(start[0].upper() + start[1:]):
            ray.init(**options)
        if not address:
            _require_token()
    context = ray.get_runtime_context()
    if context.namespace != namespace:
        raise TurboError(
            "Ray runs in this ComfyUI for another purpose (another address, or another pack), and once only: start "
            "ComfyUI anew."
        )
    if address not in ("", "auto", context.gcs_address):
        raise TurboError(
            f"address is {address}, and this machine is part of the Ray cluster {context.gcs_address}: set it to auto."
        )


def _require_token() -> None:
    """Raises TurboError where Ray was started without a token, unless the user has set RAY_AUTH_MODE. Ray listens on
    the network and runs the code that it receives; newer versions require the token that is kept in the user's
    home."""
    if not os.environ.get("RAY_AUTH_MODE"):  # ray.init sets it
        ray.shutdown()
        raise TurboError(
            f"Ray {ray.__version__} would let anyone on the network in, as it asks for no token: pip install -U ray, "
            "in ComfyUI's Python."
        )


def cluster_gpus() -> int:
    """The GPUs of the cluster that this process has joined."""
    return int(ray.cluster_resources().get("GPU", 0))


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """Turns an error of Ray in the block into a TurboError, "`what` (reason)."."""
    try:
        yield
    except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, TurboError):
            raise
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise TurboError(f"{what} ({lines[-1].strip()}).") from error


class Processes:
    """The processes of ranks 1 and up."""

    def __init__(self, place: Place):
        """Needs `join_cluster` to have been called."""
        self._place = place
        self._takes_gpus = bool(place.address) and place.backend == "nccl"
        # Where Ray assigns the GPUs, one process more: it gets this process's own GPU, so that no rank does.
        self._count = place.size - 1 + self._takes_gpus
        self._of_this_process = f"turbodiffusion-{socket.gethostname()}-{os.getpid()}-"
        self._prefix = f"{self._of_this_process}{place.size}-"

    def find(self) -> list[Any]:
        """Handles of the processes, which Ray starts if they do not run. Raises TurboError."""
        with reported("Ray could not start the processes of the other GPUs"):
            names = self._placed(self._of_this_process)
            ours = [name for name in names if name.startswith(self._prefix)]
            for name in names:
                if name not in ours[:1]:  # two sets would share the devices
                    _end(name)
            return [ray.get_actor(f"{ours[0]}-{i}") for i in range(self._count)] if ours else self._start()

    def ready(self, processes: list[Any], threads: int) -> list[Any]:
        """Waits until the processes can take part, and returns that of each rank in order. Raises TurboError."""
        place = self._place
        try:
            with reported("The process of another GPU could not be started"):
                calls = [process.start.remote(place.options, threads) for process in processes]
                devices = ray.get(calls, timeout=START_SECONDS)
        except TurboError:
            self.end()
            raise
        pairs = zip(processes, devices, strict=True)
        others = [process for process, device in pairs if device == "cpu" or device != place.own_device]
        return others[: place.size - 1]

    def end(self) -> None:
        """Ends the processes. `find` starts new ones."""
        for name in self._placed(self._prefix):
            _end(name)

    @staticmethod
    def _placed(prefix: str) -> list[str]:
        """The names of placement groups that begin with `prefix`."""
        groups = placement_group_table().values()
        return [info["name"] for info in groups if info["name"].startswith(prefix) and info["state"] != "REMOVED"]

    def _start(self) -> list[Any]:
        needs = {"CPU": 1} | ({"GPU": 1} if self._takes_gpus else {}) if self._place.address else {_RANK: 1}
        name = f"{self._prefix}{uuid.uuid4().hex}"  # a new one, because Ray may know one that has ended for a while
        places = placement_group([needs] * self._count, name=name, strategy="PACK")
        if not places.wait(_ROOM_SECONDS):
            remove_placement_group(places)
            raise TurboError(
                f"Ray has no room for {self._count} processes with {needs}: set gpus to less, or add machines."
            )
        # By value: no other process can import the pack under the name that ComfyUI gives it.
        cloudpickle.register_pickle_by_value(actor_module)
        try:
            return [self._start_one(f"{name}-{i}", i, places, needs) for i in range(self._count)]
        finally:
            cloudpickle.unregister_pickle_by_value(actor_module)

    def _start_one(self, name: str, index: int, places: Any, needs: Mapping[str, int]) -> Any:
        place = self._place
        devices = place.devices[index] if place.devices else ""
        environment = {} if self._takes_gpus else {"CUDA_VISIBLE_DEVICES": devices}
        options = {
            "name": name,
            # On this machine Ray, and with it the process, ends with ComfyUI. On a cluster it ends with the last model
            # that uses it.
            "lifetime": None if place.address else "detached",
            "num_cpus": needs.get("CPU", 0),
            "num_gpus": needs.get("GPU", 0),
            "resources": {_RANK: needs[_RANK]} if _RANK in needs else None,
            "max_restarts": 0,
            "max_concurrency": 2,  # a step, and the call that ends it
            "scheduling_strategy": PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=index),
        }
        return ray.remote(actor_module.Actor).options(**options).remote(environment, place.comfyui, place.pack)


def _end(name: str) -> None:
    """Removes a placement group, which ends the processes in it."""
    remove_placement_group(ray.util.get_placement_group(name))

"""Workers as Ray actors: Ray finds a GPU or a CPU for each on one machine or a cluster. The only file that imports
Ray."""

import asyncio
import contextlib
import dataclasses
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError

from ..errors import TurboError
from .job import Task
from .local_server import ServerSettings
from .server_worker import LocalWorker
from .worker import Outcome, WorkerFailed, WorkerUnusable

NAMESPACE = "turbodiffusion-batch"
_STOP_SECONDS = 20.0
_OBJECT_STORE = 200 << 20  # bytes; only results on their way pass through it


class _Actor:
    """A LocalWorker in a process that Ray placed; its methods take and return plain data only."""

    def __init__(self, name: str, settings: ServerSettings):
        self._worker = LocalWorker(name, settings)

    async def start(self) -> tuple[dict[str, Any], str | None]:
        import os

        try:
            info = await self._worker.start()
        except WorkerFailed as error:
            return {}, str(error)
        return info | {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}, None

    async def object_info(self) -> tuple[dict[str, Any], str | None, bool]:
        try:
            return await self._worker.object_info(), None, False
        except WorkerFailed as error:
            return {}, str(error), isinstance(error, WorkerUnusable)

    async def run(self, task: Task) -> AsyncIterator[dict[str, Any] | Outcome]:
        async for item in self._worker.run(task):
            yield item

    async def reset(self) -> None:
        with contextlib.suppress(WorkerFailed):
            await self._worker.reset()

    async def stop(self) -> None:
        await self._worker.stop()


class RayWorker:
    """The driver's end of an actor. When the actor's process or node dies, `start` asks Ray for another one."""

    def __init__(self, name: str, settings: ServerSettings, gpus: float):
        self.name = name
        if not gpus and "--cpu" not in settings.arguments:
            settings = dataclasses.replace(settings, arguments=(*settings.arguments, "--cpu"))
        self._settings, self._gpus = settings, gpus
        self._actor: Any = None  # a handle of _Actor
        self._ready = False

    async def start(self) -> dict[str, Any]:
        if self._actor is None:
            options = {"num_cpus": 1, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
            self._actor = ray.remote(_Actor).options(**options).remote(self.name, self._settings)
        info, fault = await self._call("start")
        if fault:
            raise WorkerFailed(fault)
        self._ready = True
        return info

    async def object_info(self) -> dict[str, Any]:
        info, fault, is_unusable = await self._call("object_info")
        if fault:
            raise WorkerUnusable(fault) if is_unusable else WorkerFailed(fault)
        return info

    async def _call(self, method: str) -> Any:
        self._check()
        try:
            return await getattr(self._actor, method).remote()
        except RayError as error:
            raise self._lost(error) from error

    def _check(self) -> None:
        if self._actor is None:
            raise WorkerFailed("The worker was lost.")

    async def run(self, task: Task) -> AsyncIterator[dict[str, Any] | Outcome]:
        self._check()
        try:
            async for reference in self._actor.run.options(num_returns="streaming").remote(task):
                yield await reference
        except RayError as error:
            raise self._lost(error) from error

    def _lost(self, error: RayError) -> WorkerFailed:
        self._kill()
        reason = (str(error).strip() or type(error).__name__).splitlines()
        return WorkerFailed(f"The worker's process or machine was lost ({reason[-1].strip()}).")

    async def reset(self) -> None:
        await self._call("reset")

    async def stop(self) -> None:
        if self._ready:
            with contextlib.suppress(WorkerFailed, asyncio.TimeoutError):
                await asyncio.wait_for(self._call("stop"), _STOP_SECONDS)
        self._kill()

    def _kill(self) -> None:
        """Ends the actor; its server ends with it."""
        if self._actor is not None:
            with contextlib.suppress(RayError, ValueError):
                ray.kill(self._actor)
            self._actor = None
            self._ready = False


class RayCluster:
    """Ray for the length of a batch: started here ("local"), or joined at an address ("auto" finds the one of this
    machine)."""

    def __init__(self, address: str, workers: int | None):
        self._address, self._wanted = address, workers

    def __enter__(self) -> "RayCluster":
        # The actors' code is pickled by value: the machines of a cluster need ComfyUI with this pack, at any path.
        self._package = sys.modules[__name__.partition(".")[0]]
        cloudpickle.register_pickle_by_value(self._package)
        options: dict[str, Any] = {"namespace": NAMESPACE, "logging_level": logging.WARNING, "log_to_driver": False}
        if self._address == "local":
            options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
            if self._wanted:
                options["num_cpus"] = self._wanted
        else:
            options["address"] = self._address
        try:
            ray.init(**options)
        except (RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
            cloudpickle.unregister_pickle_by_value(self._package)
            raise TurboError(f"Ray could not be reached at {self._address} ({str(error).strip()}).") from error
        return self

    def __exit__(self, *_: object) -> None:
        ray.shutdown()  # what was started here ends here; a cluster that was joined goes on
        cloudpickle.unregister_pickle_by_value(self._package)

    def workers(self, settings: ServerSettings) -> list[RayWorker]:
        """One worker for each GPU of the cluster, or as many as asked for; on CPUs where there is no GPU."""
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = self._wanted or gpus
        if not count:
            raise TurboError("Ray sees no GPU: give --workers N to run N servers on CPUs.")
        return [RayWorker(f"ray-{i}", settings, 1 if gpus else 0) for i in range(count)]

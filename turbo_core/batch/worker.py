"""Workers: one ComfyUI server each, that run a job to its files. A failure of the job is an outcome, never an exception."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import aiohttp
import av

from .client import Client, PromptRejected, Result, ServerLost
from .job import Task
from .local_server import LocalServer, ServerFailed, ServerSettings
from .notes import Notes
from .strip import jpeg_strip


class WorkerFailed(Exception):
    """The worker cannot take jobs now; the message says why."""


@dataclass
class Outcome:
    """How an attempt ended: files as (server's name, content), or an error. `lost` puts it on the worker, not the job."""

    prompt: dict
    files: list[tuple[str, bytes]] = field(default_factory=list)
    strip: bytes | None = None
    timings: dict = field(default_factory=dict)
    log: str = ""
    error: str | None = None
    lost: bool = False


class Worker(Protocol):
    """What the dispatcher needs. `run` yields events and at last an Outcome; it may raise WorkerFailed. An event with `began` says
    that the server has begun with the prompt, one with `free` that it is done with it, while its files are still on their way."""

    name: str

    async def start(self) -> dict:
        """Makes the worker ready and says what it is. Raises WorkerFailed."""

    async def object_info(self) -> dict: ...

    def run(self, task: Task) -> AsyncIterator[dict | Outcome]: ...

    async def reset(self) -> None:
        """Lets go of what may be broken after failures: memory, or the whole server."""

    async def stop(self) -> None: ...


class ServerWorker:
    """A running ComfyUI server that others may use too."""

    def __init__(self, url: str):
        self.url = self.name = url.rstrip("/")
        self._client: Client | None = None

    async def start(self) -> dict:
        await self._connect(self.url)
        if not await self._client.is_ready():
            raise WorkerFailed(f"{self.url} does not answer; is ComfyUI running there?")
        return {}

    async def object_info(self) -> dict:
        try:
            return await self._client.object_info()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise WorkerFailed(f"{self.name} does not say what nodes it has ({error}); is it a ComfyUI?") from error

    async def _connect(self, url: str) -> None:
        await self._disconnect()
        self._client = await Client(url).__aenter__()
        self._uploaded: dict[str, str] = {}

    async def _disconnect(self) -> None:
        if self._client:
            await self._client.__aexit__()
            self._client = None

    async def run(self, task: Task) -> AsyncIterator[dict | Outcome]:
        events: asyncio.Queue = asyncio.Queue()
        running = asyncio.ensure_future(self._outcome(task, events.put_nowait))
        running.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield running.result()
        finally:
            if not running.done():
                running.cancel()
                await self._abandon(task)

    async def _outcome(self, task: Task, tell) -> Outcome:
        notes = Notes(task, tell)
        prompt = task.prompt
        try:
            prompt = await self._prepare(task)
            result = await self._client.run(
                prompt, notes.take, task.timeout, False, task.prompt_id, is_alive=self._is_alive
            )
            notes.ended()
            error = _failure(result, prompt)
            files = [] if error else await self._fetch(result)
            if not error and not files:
                error = "The workflow ended without a saved file."
        except PromptRejected as refusal:
            return Outcome(prompt, timings=notes.timings(), log=notes.text(), error=_refusal(refusal, prompt))
        except TimeoutError as error:
            await self._unstick(task)
            return Outcome(prompt, timings=notes.timings(), log=notes.text(), error=str(error), lost=True)
        except (ServerLost, aiohttp.ClientError, OSError) as error:
            return Outcome(
                prompt, timings=notes.timings(), log=notes.text(), error=str(error) or repr(error), lost=True
            )
        if error and "out of memory" in error.lower():
            with contextlib.suppress(aiohttp.ClientError, OSError):
                await self._client.free()
        strip = await asyncio.to_thread(_strip, files)
        return Outcome(prompt, files, strip, notes.timings(), notes.text(), error)

    def _is_alive(self) -> bool:
        return True

    async def _prepare(self, task: Task) -> dict:
        """The prompt as this server gets it: its files uploaded, its results in a folder of their own."""
        for name, data in task.files.items():
            if name not in self._uploaded:
                folder, _, file = name.rpartition("/")
                self._uploaded[name] = await self._client.upload(data, file, folder)
        prompt = {}
        for key, node in task.prompt.items():
            inputs = {n: self._uploaded.get(v, v) if isinstance(v, str) else v for n, v in node["inputs"].items()}
            if isinstance(inputs.get("filename_prefix"), str):
                inputs["filename_prefix"] = f"{task.folder}/{len(prompt)}"
            prompt[key] = node | {"inputs": inputs}
        return prompt

    async def _fetch(self, result: Result) -> list[tuple[str, bytes]]:
        saved = [file for file in result.files if file.get("type") == "output"]
        return [(str(file["filename"]), await self._client.view(file)) for file in saved]

    async def _abandon(self, task: Task) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError, asyncio.TimeoutError):
            await asyncio.wait_for(self._client.interrupt(task.prompt_id), 10)

    async def _unstick(self, task: Task) -> None:
        """After an attempt that took too long."""
        await self._abandon(task)

    async def reset(self) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await self._client.free()

    async def stop(self) -> None:
        await self._disconnect()


class LocalWorker(ServerWorker):
    """A server of our own on this machine, started when needed and again after it died."""

    def __init__(self, name: str, settings: ServerSettings):
        super().__init__("")
        self.name = name
        self._server = LocalServer(settings)
        self._starting = asyncio.Lock()

    async def start(self) -> dict:
        async with self._starting:
            if not self._server.is_running():
                try:
                    await self._server.start()
                except (ServerFailed, OSError) as error:
                    raise WorkerFailed(str(error)) from error
                await self._connect(self._server.url)
        return {"url": self._server.url, "server_pid": self._server.pid}

    async def run(self, task: Task) -> AsyncIterator[dict | Outcome]:
        if not self._server.is_running():
            raise WorkerFailed("The server has ended.")
        log_start = self._server.log_size()
        async for item in super().run(task):
            if isinstance(item, Outcome):
                item.log += f"\n--- ComfyUI ---\n{self._server.log(log_start)}"
                shutil.rmtree(self._server.folder / "output" / task.folder, ignore_errors=True)
            yield item

    def _is_alive(self) -> bool:
        return self._server.is_running()

    async def _unstick(self, task: Task) -> None:
        await asyncio.to_thread(self._server.stop)

    async def reset(self) -> None:
        await asyncio.to_thread(self._server.stop)
        await self.start()

    async def stop(self) -> None:
        await super().stop()
        await asyncio.to_thread(self._server.stop)


def _strip(files: list[tuple[str, bytes]]) -> bytes | None:
    """A strip of the first file that has frames; a result without a picture is no failure."""
    for _, data in files:
        with contextlib.suppress(av.FFmpegError, OSError, IndexError, ValueError, ZeroDivisionError):
            return jpeg_strip(data)
    return None


def _failure(result: Result, prompt: dict) -> str | None:
    if result.error:
        node = f"{result.error.get('node_type')} (node {result.error.get('node_id')})"
        return f"{node}: {str(result.error['exception_message']).strip() or result.error.get('exception_type')}"
    return "It was interrupted on the server." if result.interrupted else None


def _refusal(refusal: PromptRejected, prompt: dict) -> str:
    """The server's own validation as one sentence for each input."""
    said = []
    for key, entry in (refusal.node_errors or {}).items():
        label = f"{prompt.get(key, {}).get('class_type', '')} (node {key})"
        said += [f"{label}: {error['message']}, {error['details']}" for error in entry.get("errors", ())]
    return "; ".join(said) or str(refusal.error.get("message"))

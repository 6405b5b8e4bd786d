"""Workers on this machine's network: a running ComfyUI server, or one that is started here."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

import av

from .answers import BadAnswer
from .client import REQUEST_ERRORS, Client, PromptRejected, Result, ServerLost, TimedOut
from .connection import Limits, TooLarge
from .job import Task
from .local_server import LocalServer, ServerFailed, ServerSettings
from .notes import Emit, Notes
from .strip import jpeg_strip
from .text import LONGEST, brief
from .worker import Outcome, WorkerFailed, WorkerUnusable
from .workflow import Prompt


class ServerWorker:
    """A running ComfyUI server that others may use too."""

    def __init__(self, url: str, limits: Limits | None = None):
        self.url = self.name = url.rstrip("/")
        self._limits = limits or Limits()
        self._connected: Client | None = None
        self._uploaded: dict[str, str] = {}

    async def start(self) -> dict[str, Any]:
        await self._connect(self.url)
        if not await self._client.is_ready():
            raise WorkerFailed(f"{self.url} does not answer; is ComfyUI running there?")
        return {}

    async def object_info(self) -> dict[str, Any]:
        try:
            return await self._client.object_info()
        except BadAnswer as error:
            raise WorkerUnusable(f"{self.name} is not a ComfyUI that can be used ({error}).") from error
        except REQUEST_ERRORS as error:
            raise WorkerFailed(f"{self.name} does not say what nodes it has ({error}); is it a ComfyUI?") from error

    @property
    def _client(self) -> Client:
        """The connection that `start` made. Raises WorkerFailed before and after it."""
        if self._connected is None:
            raise WorkerFailed(f"{self.name} is not connected.")
        return self._connected

    async def _connect(self, url: str) -> None:
        await self._disconnect()
        self._connected = await Client(url, self._limits).__aenter__()
        self._uploaded = {}

    async def _disconnect(self) -> None:
        if self._connected is not None:
            await self._connected.__aexit__()
            self._connected = None

    async def run(self, task: Task) -> AsyncIterator[dict[str, Any] | Outcome]:
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        running = asyncio.ensure_future(self._outcome(self._client, task, events.put_nowait))
        running.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield running.result()
        finally:
            if not running.done():
                running.cancel()
                await self._abandon(task)

    async def _outcome(self, client: Client, task: Task, emit: Emit) -> Outcome:
        notes = Notes(task, emit)
        outcome = Outcome(task.prompt)
        try:
            outcome.prompt = await self._prepare(client, task)
            result = await client.run(
                outcome.prompt, notes.take, task.timeout, False, task.prompt_id, is_alive=self._is_alive
            )
            notes.ended()
            outcome.error = _failure(result)
            if not outcome.error:
                outcome.files = await self._fetch(client, result, task.timeout)
                outcome.error = None if outcome.files else "The workflow ended without a saved file."
        except PromptRejected as refusal:
            outcome.error = _refusal(refusal, outcome.prompt)
        except TooLarge as failure:
            outcome.error = f"Its files are too large ({failure})."
        except TimedOut as failure:
            await self._unstick(task)
            outcome.error, outcome.lost = str(failure), True
        except BadAnswer as failure:
            outcome.error = f"{self.name} is not a ComfyUI that can be used ({failure})."
            outcome.lost = outcome.unusable = True
        except (ServerLost, *REQUEST_ERRORS) as failure:
            outcome.error, outcome.lost = str(failure) or repr(failure), True
        else:
            if outcome.error and "out of memory" in outcome.error.lower():
                with contextlib.suppress(*REQUEST_ERRORS):
                    await client.free()
            outcome.strip = await asyncio.to_thread(_strip, outcome.files)
        if outcome.error:
            outcome.error = brief(outcome.error, LONGEST)
        outcome.timings, outcome.log = notes.timings(), notes.text()
        return outcome

    def _is_alive(self) -> bool:
        return True

    async def _prepare(self, client: Client, task: Task) -> Prompt:
        """The prompt as this server gets it: its files uploaded, its results in a folder that no other attempt uses."""
        for name, data in task.files.items():
            if name not in self._uploaded:
                folder, _, file = name.rpartition("/")
                self._uploaded[name] = await client.upload(data, file, folder)
        prompt: Prompt = {}
        for key, node in task.prompt.items():
            inputs = {n: self._uploaded.get(v, v) if isinstance(v, str) else v for n, v in node["inputs"].items()}
            if isinstance(inputs.get("filename_prefix"), str):
                inputs["filename_prefix"] = f"{task.folder}/{len(prompt)}"
            prompt[key] = node | {"inputs": inputs}
        return prompt

    async def _fetch(self, client: Client, result: Result, timeout: float | None) -> list[tuple[str, bytes]]:
        """The saved files, as (server's name, content). Raises TimedOut, TooLarge, BadAnswer, aiohttp.ClientError."""

        async def fetch() -> list[tuple[str, bytes]]:
            files: list[tuple[str, bytes]] = []
            left = client.limits.result_bytes
            for file in result.files:
                if file.get("type") == "output":
                    files.append((file["filename"], await client.view(file, left)))
                    left -= len(files[-1][1])
            return files

        if timeout is None:
            return await fetch()
        try:
            return await asyncio.wait_for(fetch(), timeout)
        except asyncio.TimeoutError:
            raise TimedOut(f"The files did not come within {timeout:.0f} s.") from None

    async def _abandon(self, task: Task) -> None:
        with contextlib.suppress(*REQUEST_ERRORS, WorkerFailed):
            await asyncio.wait_for(self._client.interrupt(task.prompt_id), 10)

    async def _unstick(self, task: Task) -> None:
        """Frees the server after an attempt that took too long."""
        await self._abandon(task)

    async def reset(self) -> None:
        with contextlib.suppress(*REQUEST_ERRORS):
            await self._client.free()

    async def stop(self) -> None:
        await self._disconnect()


class LocalWorker(ServerWorker):
    """A server on this machine that the worker starts when needed, and again after it died."""

    def __init__(self, name: str, settings: ServerSettings):
        super().__init__("")
        self.name = name
        self._settings = settings
        self._server: LocalServer | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> dict[str, Any]:
        async with self._starting:
            if self._server is None or not self._server.is_running():
                await self._stop_server()
                try:
                    self._server = await LocalServer.start(self._settings)
                except (ServerFailed, OSError) as error:
                    raise WorkerFailed(str(error)) from error
                await self._connect(self._server.url)
        return {"url": self._server.url, "server_pid": self._server.pid}

    async def run(self, task: Task) -> AsyncIterator[dict[str, Any] | Outcome]:
        server = self._server
        if server is None or not server.is_running():
            raise WorkerFailed("The server has ended.")
        log_start = server.log_size()
        async for item in super().run(task):
            if isinstance(item, Outcome):
                item.log += f"\n--- ComfyUI ---\n{server.log(log_start)}"
                shutil.rmtree(server.folder / "output" / task.folder, ignore_errors=True)
            yield item

    def _is_alive(self) -> bool:
        return self._server is not None and self._server.is_running()

    async def _stop_server(self) -> None:
        if self._server is not None:
            await asyncio.to_thread(self._server.stop)

    async def _unstick(self, task: Task) -> None:
        await self._stop_server()

    async def reset(self) -> None:
        await self._stop_server()
        await self.start()

    async def stop(self) -> None:
        await super().stop()
        await self._stop_server()


def _strip(files: list[tuple[str, bytes]]) -> bytes | None:
    """A strip of frames of the first file that has any; a result without one is not a failure."""
    for _, data in files:
        with contextlib.suppress(av.FFmpegError, OSError, IndexError, ValueError, ZeroDivisionError):
            return jpeg_strip(data)
    return None


def _failure(result: Result) -> str | None:
    if result.error:
        node = f"{result.error['node_type']} (node {result.error['node_id']})"
        return f"{node}: {result.error['exception_message'].strip() or result.error['exception_type']}"
    return "It was interrupted on the server." if result.interrupted else None


def _refusal(refusal: PromptRejected, prompt: Prompt) -> str:
    """The server's own validation as one sentence for each input."""
    said = []
    for key, entry in refusal.node_errors.items():
        label = f"{prompt.get(key, {}).get('class_type', '')} (node {key})"
        said += [f"{label}: {error['message']}, {error['details']}" for error in entry["errors"]]
    return "; ".join(said) or str(refusal.error.get("message"))

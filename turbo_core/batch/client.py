"""ComfyUI's HTTP and websocket API: queue a prompt, follow it to its end through broken connections, fetch its
files."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp

from . import answers
from .answers import BadAnswer, HistoryEntry, NodeErrors
from .connection import Connection, Limits, TooLarge

PREVIEW_MESSAGES = (1, 4)  # a preview image, without and with metadata
REQUEST_ERRORS = (aiohttp.ClientError, OSError, asyncio.TimeoutError, BadAnswer, TooLarge)
_SILENCE = 30.0  # seconds without an event of the prompt after which the server is asked whether it still knows it
_JOINED = 5.0  # the same for a prompt that another client queued, which receives its events instead
_HEARTBEAT = 60.0  # seconds between pings, which a server whose machine has vanished does not answer
_PAUSE = 0.5  # seconds before a connection is made again; the first pauses are shorter, because the history may lag

EventHandler = Callable[[str, dict[str, Any]], None]


class PromptRejected(Exception):
    """POST /prompt answered 400; `error` is the server's, `node_errors` its faults by node as plain dicts."""

    def __init__(self, error: dict[str, Any], node_errors: Mapping[str, NodeErrors]):
        super().__init__(f"{error.get('type')}: {error.get('message')}")
        self.error = error
        self.node_errors = {key: entry.model_dump() for key, entry in node_errors.items()}


class ExecutionFailed(Exception):
    """A node raised; the message is the node's own, `result.error` is the whole execution_error event."""

    def __init__(self, result: "Result", error: dict[str, Any]):
        super().__init__(f"{error['exception_message']}".rstrip("\n"))
        self.result = result


class ServerLost(Exception):
    """The server went away, or came back without the prompt."""


class TimedOut(TimeoutError):
    """The prompt took longer than its attempt may."""


@dataclass
class Result:
    """What one queued prompt did."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews_count: int = 0
    error: dict[str, Any] | None = None

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The data of every event of that kind, in order."""
        return [data for name, data in self.events if name == kind]

    @property
    def cached_nodes(self) -> list[str]:
        return [node for data in self.of("execution_cached") for node in data["nodes"]]

    @property
    def executed_nodes(self) -> list[str]:
        return [data["node"] for data in self.of("executing") if data["node"] is not None]

    @property
    def interrupted(self) -> bool:
        return bool(self.of("execution_interrupted"))

    @property
    def files(self) -> list[dict[str, Any]]:
        """Every saved file, as `Client.view` takes it, without the previews that nodes show."""
        return [item for item in answers.saved_items(self.outputs) if item.get("type") != "temp"]


class Client:
    """An asynchronous context manager around the connections to one server.

    Its methods raise aiohttp.ClientError where the server does not answer and BadAnswer where its answer is not one of
    ComfyUI."""

    def __init__(self, url: str, limits: Limits | None = None):
        self._connection = Connection(url, limits or Limits())
        self.url, self.limits = self._connection.url, self._connection.limits
        self.get = self._connection.get

    async def __aenter__(self) -> "Client":
        await self._connection.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.__aexit__()

    async def post(self, path: str, data: dict[str, Any]) -> bytes:
        """POSTs JSON and returns the body of the answer."""
        return (await self._connection.request("POST", path, json=data))[1]

    async def is_ready(self) -> bool:
        """Whether the server answers."""
        return await self._connection.is_answering("/system_stats")

    async def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The server's description of every node class, or of one."""
        path = "/object_info" + (f"/{quote(node)}" if node else "")
        info = await self._connection.get_json(path, self.limits.info_seconds)
        if not isinstance(info, dict):
            raise BadAnswer("/object_info does not have ComfyUI's form (it is not an object)")
        return info[node] if node else info

    async def queue(self, prompt: dict[str, Any], client_id: str | None = None, prompt_id: str | None = None) -> str:
        """Queues an API-format prompt, under an id of the caller's choice (a UUID), and returns the id. Raises
        PromptRejected."""
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        if prompt_id:
            body["prompt_id"] = prompt_id
        status, text = await self._connection.request("POST", "/prompt", accepted=(400,), json=body)
        if status == 400:
            refusal = answers.parse(answers.Rejection, answers.decode(text, "/prompt"), "/prompt")
            raise PromptRejected(refusal.error, refusal.node_errors)
        queued = answers.parse(answers.Queued, answers.decode(text, "/prompt"), "/prompt").prompt_id
        if prompt_id and queued != prompt_id:
            raise BadAnswer("/prompt gives the prompt another id; ComfyUI 0.30 or newer is needed")
        return queued

    async def run(
        self,
        prompt: dict[str, Any],
        on_event: EventHandler | None = None,
        timeout: float | None = None,
        check: bool = True,
        prompt_id: str | None = None,
        is_alive: Callable[[], bool] = lambda: True,
    ) -> Result:
        """Queues the prompt and follows it to its end, joining it if the server knows `prompt_id` already.

        A broken connection is made again for `limits.lost_seconds` while `is_alive` says so; then ServerLost. With
        `check` a node's error raises ExecutionFailed. Raises TimedOut, a TimeoutError, when the prompt waits or runs
        for more than `timeout` seconds, leaving it queued."""
        result = Result(prompt_id or str(uuid.uuid4()))
        since = time.monotonic()

        def take(kind: str, data: dict[str, Any]) -> None:
            nonlocal since
            if kind == "execution_start":
                since = time.monotonic()
            if on_event is not None:
                on_event(kind, data)

        following = asyncio.ensure_future(self._follow(prompt, result, take, is_alive))
        try:
            while not following.done():
                left = None if timeout is None else since + timeout - time.monotonic()
                if left is not None and left <= 0:
                    raise TimedOut(f"Prompt {result.prompt_id} did not finish in {timeout:.0f} s.")
                await asyncio.wait({following}, timeout=left)
        finally:
            following.cancel()
            await asyncio.wait({following})
        entry = following.result()
        result.outputs = entry.outputs
        failure = entry.error.model_dump() if entry.error else None
        result.error = next(iter(result.of("execution_error")), failure)
        if check and result.error:
            raise ExecutionFailed(result, result.error)
        return result

    async def _follow(
        self,
        prompt: dict[str, Any],
        result: Result,
        on_event: EventHandler,
        is_alive: Callable[[], bool],
    ) -> HistoryEntry:
        """The prompt's history entry, waited for on as many connections as it takes."""
        client_id, queued, silence, pause = uuid.uuid4().hex, False, _JOINED, _PAUSE / 32
        failing: float | None = None  # since when the server has not answered
        while True:
            try:
                # Listening starts before the prompt is queued, so that no event is missed.
                async with self._connection.websocket(f"/ws?clientId={client_id}", _HEARTBEAT) as socket:
                    joined = await self._knows(result.prompt_id)
                    if queued and not joined:
                        raise ServerLost(
                            f"{self.url} no longer knows the prompt; was it restarted, or its queue cleared?"
                        )
                    if not joined:
                        await self.queue(prompt, client_id, result.prompt_id)
                        silence = _SILENCE
                    queued = True
                    # All events of a prompt queued here are still to come; a joined one may have sent its last.
                    listening = not joined or await self.history(result.prompt_id) is None
                    if listening:
                        await self._listen(socket, result, on_event, silence)
                    if entry := await self.history(result.prompt_id):
                        return entry
                    failing = None
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
                if isinstance(error, aiohttp.ClientResponseError) and error.status < 500 and error.status != 404:
                    raise
                failing = failing or time.monotonic()
                if not is_alive() or time.monotonic() - failing > self.limits.lost_seconds:
                    raise ServerLost(f"{self.url} does not answer ({error or type(error).__name__}).") from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE)

    async def _listen(
        self,
        socket: "aiohttp.ClientWebSocketResponse[bool]",
        result: Result,
        on_event: EventHandler,
        silence: float,
    ) -> None:
        """Collects the prompt's events until its end (`executing` without a node), or until its state must be asked
        for: the connection ended, or no event of this prompt came for `silence` seconds."""
        until = time.monotonic() + silence
        while (left := until - time.monotonic()) > 0:
            try:
                message = await socket.receive(timeout=left)
            except asyncio.TimeoutError:
                return
            if message.type == aiohttp.WSMsgType.BINARY:
                result.previews_count += int.from_bytes(message.data[:4], "big") in PREVIEW_MESSAGES
                continue
            if message.type != aiohttp.WSMsgType.TEXT:
                return
            event = answers.parse_event(message.data, result.prompt_id)
            if event is None:
                continue
            until = time.monotonic() + silence
            kind, data = event
            result.events.append(event)
            on_event(kind, data)
            if kind == "executing" and data["node"] is None:
                return

    async def history(self, prompt_id: str) -> HistoryEntry | None:
        """The entry of a prompt that has ended, else None."""
        return answers.parse_history(await self._connection.get_json(f"/history/{prompt_id}"), prompt_id)

    async def _knows(self, prompt_id: str) -> bool:
        queue = answers.parse(answers.Queue, await self._connection.get_json("/queue"), "/queue")
        if prompt_id in queue.queue_running or prompt_id in queue.queue_pending:
            return True
        return await self.history(prompt_id) is not None

    async def interrupt(self, prompt_id: str | None = None) -> None:
        """Stops the prompt that is running; given an id, only that one, and takes it out of the queue."""
        if prompt_id:
            await self.post("/queue", {"delete": [prompt_id]})
        await self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    async def free(self) -> None:
        """Makes the server release models and cached results before the next prompt."""
        await self.post("/free", {"unload_models": True, "free_memory": True})

    async def upload(self, data: bytes, name: str, subfolder: str = "", overwrite: bool = False) -> str:
        """Puts a file into the input folder and returns the name that LoadImage takes; equal files are kept once."""
        form = aiohttp.FormData()
        form.add_field("image", data, filename=name, content_type="application/octet-stream")
        form.add_field("subfolder", subfolder)
        if overwrite:
            form.add_field("overwrite", "true")
        _, body = await self._connection.request("POST", "/upload/image", sent_bytes=len(data), data=form)
        answer = answers.parse(answers.Uploaded, answers.decode(body, "/upload/image"), "/upload/image")
        return "/".join(filter(None, (answer.subfolder, answer.name)))

    async def view(self, file: Mapping[str, object], most: int | None = None) -> bytes:
        """Downloads one of `Result.files`, of at most that many bytes (default: `limits.result_bytes`). Raises TooLarge
        if the server announces more, BadAnswer if it sends more."""
        query = "&".join(f"{key}={quote(str(file.get(key, '')), safe='')}" for key in ("filename", "subfolder", "type"))
        return await self.get(f"/view?{query}", self.limits.result_bytes if most is None else max(most, 1))

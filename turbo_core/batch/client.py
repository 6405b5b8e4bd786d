"""ComfyUI's HTTP and websocket API: queue a prompt, follow it to its end through broken connections, fetch its files."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import quote

import aiohttp

PREVIEW_MESSAGES = (1, 4)  # a preview image, without and with metadata
_SILENCE = 30.0  # seconds without an event after which the server is asked whether it still knows the prompt
_JOINED = 5.0  # the same for a prompt that another client queued, which gets its events
_HEARTBEAT = 60.0  # a server whose machine vanished answers no ping
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)


class PromptRejected(Exception):
    """POST /prompt answered 400; `error` and `node_errors` are the server's."""

    def __init__(self, error: dict, node_errors: dict):
        super().__init__(f"{error.get('type')}: {error.get('message')} {json.dumps(node_errors)}")
        self.error, self.node_errors = error, node_errors


class ExecutionFailed(Exception):
    """A node raised; the message is the node's own, `result.error` is the whole execution_error event."""

    def __init__(self, result: "Result"):
        super().__init__(result.error["exception_message"].rstrip("\n"))
        self.result = result


class ServerLost(Exception):
    """The server went away, or came back without the prompt."""


@dataclass
class Result:
    """What one queued prompt did."""

    prompt_id: str
    outputs: dict[str, dict] = field(default_factory=dict)
    events: list[tuple[str, dict]] = field(default_factory=list)
    previews_count: int = 0
    error: dict | None = None

    def of(self, kind: str) -> list[dict]:
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
    def files(self) -> list[dict]:
        """Every saved file, to be given to `Client.view`; not the pictures that nodes show of themselves."""
        values = [value for output in self.outputs.values() for value in output.values() if isinstance(value, list)]
        items = [item for value in values for item in value if isinstance(item, dict) and "filename" in item]
        return [item for item in items if item.get("type") != "temp"]


class Client:
    """An asynchronous context manager around the connections to one server."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    async def __aenter__(self) -> "Client":
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        return self

    async def __aexit__(self, *_) -> None:
        await self._session.close()

    async def get(self, path: str) -> bytes:
        async with self._session.get(self.url + path, raise_for_status=True) as answer:
            return await answer.read()

    async def post(self, path: str, data: dict | aiohttp.FormData) -> dict:
        body = {"json": data} if isinstance(data, dict) else {"data": data}
        async with self._session.post(self.url + path, raise_for_status=True, **body) as answer:
            return json.loads(await answer.read() or b"{}")

    async def is_ready(self) -> bool:
        try:
            await self.get("/system_stats")
        except (aiohttp.ClientError, OSError, ValueError):  # the last for what is no address
            return False
        return True

    async def object_info(self, node: str | None = None) -> dict:
        """What the server knows of every node, or of one."""
        info = json.loads(await self.get("/object_info" + (f"/{quote(node)}" if node else "")))
        return info[node] if node else info

    async def queue(self, prompt: dict, client_id: str | None = None, prompt_id: str | None = None) -> str:
        """Queues an API-format prompt, under an id of the caller's choice (a UUID), and returns the id."""
        body = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        if prompt_id:
            body["prompt_id"] = prompt_id
        async with self._session.post(f"{self.url}/prompt", json=body) as answer:
            if answer.status == 400:
                refusal = await answer.json()
                raise PromptRejected(refusal["error"], refusal["node_errors"])
            answer.raise_for_status()
            return (await answer.json())["prompt_id"]

    async def run(
        self,
        prompt: dict,
        on_event: Callable[[str, dict], None] | None = None,
        timeout: float | None = None,
        check: bool = True,
        prompt_id: str | None = None,
        lost_after: float = 10.0,
        is_alive: Callable[[], bool] = lambda: True,
    ) -> Result:
        """Queues the prompt and follows it to its end, joining it if the server knows `prompt_id` already.

        A broken connection is made again for `lost_after` seconds while `is_alive` says so; then ServerLost. With `check`
        a node's error raises ExecutionFailed. Raises TimeoutError when the prompt waits or runs for more than `timeout` seconds,
        leaving it queued."""
        result = Result(prompt_id or str(uuid.uuid4()))
        since = time.monotonic()

        def take(kind: str, data: dict) -> None:
            nonlocal since
            if kind == "execution_start":
                since = time.monotonic()
            if on_event is not None:
                on_event(kind, data)

        following = asyncio.ensure_future(self._follow(prompt, result, take, lost_after, is_alive))
        try:
            while not following.done():
                left = None if timeout is None else since + timeout - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"Prompt {result.prompt_id} did not finish in {timeout:.0f} s.")
                await asyncio.wait({following}, timeout=left)
        finally:
            following.cancel()
            await asyncio.wait({following})
        entry = following.result()
        result.outputs = entry["outputs"]
        said = result.events + [tuple(message) for message in entry["status"]["messages"]]
        result.error = next((data for kind, data in said if kind == "execution_error"), None)
        if check and result.error:
            raise ExecutionFailed(result)
        return result

    async def _follow(self, prompt: dict, result: Result, on_event, lost_after: float, is_alive) -> dict:
        """The prompt's history entry, waited for on as many connections as it takes."""
        client_id, queued, silence, reached = uuid.uuid4().hex, False, _JOINED, time.monotonic()
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={client_id}"
        while True:
            try:
                # Listening starts before the prompt is queued, so that no event is missed.
                async with self._session.ws_connect(address, heartbeat=_HEARTBEAT, max_msg_size=0) as socket:
                    reached = time.monotonic()
                    joined = await self._knows(result.prompt_id)
                    if queued and not joined:
                        raise ServerLost(
                            f"{self.url} no longer knows the prompt; was it restarted, or its queue cleared?"
                        )
                    if not joined:
                        await self.queue(prompt, client_id, result.prompt_id)
                        silence = _SILENCE
                    queued = True
                    # All events of a prompt queued here are still to come; one that was joined may have had its last.
                    listening = not joined or await self.history(result.prompt_id) is None
                    if listening:
                        await self._listen(socket, result, on_event, silence)
                    if entry := await self.history(result.prompt_id):
                        return entry
            except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
                if isinstance(error, aiohttp.ClientResponseError) and error.status < 500 and error.status != 404:
                    raise
                if not is_alive() or time.monotonic() - reached > lost_after:
                    raise ServerLost(f"{self.url} does not answer ({error or type(error).__name__}).") from error
                await asyncio.sleep(0.5)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse, result: Result, on_event, silence: float) -> None:
        """Collects the prompt's events until its end (`executing` without a node), or until there is cause to look: the
        connection ended, or it is silent."""
        while True:
            try:
                message = await socket.receive(timeout=silence)
            except asyncio.TimeoutError:
                return
            if message.type == aiohttp.WSMsgType.BINARY:
                result.previews_count += int.from_bytes(message.data[:4], "big") in PREVIEW_MESSAGES
                continue
            if message.type != aiohttp.WSMsgType.TEXT:
                return
            event = json.loads(message.data)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") != result.prompt_id:
                continue
            result.events.append((kind, data))
            on_event(kind, data)
            if kind == "executing" and data["node"] is None:
                return

    async def history(self, prompt_id: str) -> dict | None:
        """The entry of a prompt that ended."""
        return json.loads(await self.get(f"/history/{prompt_id}")).get(prompt_id)

    async def _knows(self, prompt_id: str) -> bool:
        queue = json.loads(await self.get("/queue"))
        if any(item[1] == prompt_id for item in queue["queue_running"] + queue["queue_pending"]):
            return True
        return await self.history(prompt_id) is not None

    async def interrupt(self, prompt_id: str | None = None) -> None:
        """Stops the prompt that is running; given an id, only that one, and takes it out of the queue."""
        if prompt_id:
            await self.post("/queue", {"delete": [prompt_id]})
        await self.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    async def free(self) -> None:
        """Makes the server let go of models and cached results before the next prompt."""
        await self.post("/free", {"unload_models": True, "free_memory": True})

    async def upload(self, data: bytes, name: str, subfolder: str = "", overwrite: bool = False) -> str:
        """Puts a file into the input folder and returns the name that LoadImage takes; equal files are kept once."""
        form = aiohttp.FormData()
        form.add_field("image", data, filename=name, content_type="application/octet-stream")
        form.add_field("subfolder", subfolder)
        if overwrite:
            form.add_field("overwrite", "true")
        answer = await self.post("/upload/image", form)
        return "/".join(filter(None, (answer["subfolder"], answer["name"])))

    async def view(self, file: dict) -> bytes:
        """Downloads one of `Result.files`."""
        query = "&".join(f"{key}={quote(str(file.get(key, '')), safe='')}" for key in ("filename", "subfolder", "type"))
        return await self.get(f"/view?{query}")

"""A small client of ComfyUI's HTTP and websocket API."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import websocket

PREVIEW_MESSAGES = (1, 4)  # a preview image, without and with metadata
HISTORY_LAG = 5.0  # seconds by which /history may trail the last event


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
        """Every saved file, to be given to `ComfyClient.view`; not the pictures that nodes show of themselves."""
        values = [value for output in self.outputs.values() for value in output.values() if isinstance(value, list)]
        items = [item for value in values for item in value if isinstance(item, dict) and "filename" in item]
        return [item for item in items if item.get("type") != "temp"]


class ComfyClient:
    def __init__(self, url: str):
        self.url = url

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, data: bytes | dict, content_type: str = "application/json") -> dict:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    def is_ready(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def object_info(self, node: str | None = None) -> dict:
        """What the server knows of every node, or of one."""
        info = json.loads(self.get("/object_info" + (f"/{urllib.parse.quote(node)}" if node else "")))
        return info[node] if node else info

    def queue(self, prompt: dict, client_id: str | None = None) -> str:
        """Queues an API-format prompt and returns its id."""
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            answer = json.loads(error.read())
            raise PromptRejected(answer["error"], answer["node_errors"]) from None

    def run(
        self,
        prompt: dict,
        on_event: Callable[[str, dict], None] | None = None,
        timeout: float = 300,
        check: bool = True,
    ) -> Result:
        """Queues the prompt and follows it to its end. With `check` a node's error raises ExecutionFailed."""
        client_id = uuid.uuid4().hex
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={client_id}"
        socket = websocket.create_connection(address, timeout=30)
        try:
            result = Result(self.queue(prompt, client_id))
            self._follow(socket, result, on_event or (lambda kind, data: None), timeout)
        finally:
            socket.close()
        result.error = next(iter(result.of("execution_error")), None)
        if check and result.error:
            raise ExecutionFailed(result)
        result.outputs = self._history(result.prompt_id)["outputs"]
        return result

    def _follow(self, socket: websocket.WebSocket, result: Result, on_event: Callable, timeout: float) -> None:
        """Collects the prompt's events up to `executing` without a node, which ends each prompt."""
        end = time.monotonic() + timeout
        while True:
            socket.settimeout(max(end - time.monotonic(), 0.01))
            try:
                message = socket.recv()
            except websocket.WebSocketTimeoutException:
                raise TimeoutError(f"Prompt {result.prompt_id} did not finish in {timeout:.0f} s.") from None
            if isinstance(message, bytes):
                result.previews_count += int.from_bytes(message[:4], "big") in PREVIEW_MESSAGES
                continue
            event = json.loads(message)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") != result.prompt_id:
                continue
            result.events.append((kind, data))
            on_event(kind, data)
            if kind == "executing" and data["node"] is None:
                return

    def _history(self, prompt_id: str) -> dict:
        end = time.monotonic() + HISTORY_LAG
        while True:
            history = json.loads(self.get(f"/history/{prompt_id}"))
            if prompt_id in history:
                return history[prompt_id]
            if time.monotonic() > end:
                raise RuntimeError(f"Prompt {prompt_id} ended without a history entry.")
            time.sleep(0.05)

    def interrupt(self) -> None:
        """Stops the prompt that is running."""
        self.post("/interrupt", {})

    def upload_image(self, path: Path, name: str | None = None) -> str:
        """Puts a picture into the input folder and returns the name that LoadImage takes."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name or path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        tail = f'\r\n--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n--{boundary}--\r\n'
        body = head.encode() + path.read_bytes() + tail.encode()
        return self.post("/upload/image", body, f"multipart/form-data; boundary={boundary}")["name"]

    def view(self, file: dict) -> bytes:
        """Downloads one of `Result.files`."""
        query = urllib.parse.urlencode({key: file[key] for key in ("filename", "subfolder", "type")})
        return self.get(f"/view?{query}")

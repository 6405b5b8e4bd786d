"""Queues one of workflows/api/*.json on a ComfyUI server, shows progress and downloads what it saves.

One file to copy; needs Python 3.10 and `pip install websocket-client`.

    python api_client.py workflows/api/TurboWan2.1-T2V-1.3B-480P.json --prompt "A red fox ..." --seed 7 --out fox.mp4
"""

import argparse
import contextlib
import http.client
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import websocket

HISTORY_LAG = 10.0  # seconds by which /history may trail the last event


class Failed(Exception):
    """A failure whose message is shown to the user."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Server:
    def __init__(self, url: str):
        scheme, _, rest = url.strip().rpartition("://")
        self.url = f"{scheme.lower() or 'http'}://{rest.strip('/')}"

    def request(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        try:
            request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Failed(refusal(error.code, error.read())) from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # no answer, one of another kind, no address
            reason = str(getattr(error, "reason", error)).strip()
            raise Failed(f"ComfyUI does not answer at {self.url} ({reason}): start it, or give --server.") from None

    def ask(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> dict:
        """What the server answers in JSON."""
        try:
            answer = json.loads(self.request(path, body, content_type))
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Failed(f"What answers at {self.url} is not a ComfyUI: give its address with --server.")
        return answer

    def upload(self, picture: Path) -> str:
        """Puts a picture into ComfyUI's input folder; the name that LoadImage takes. An equal name does not
        overwrite."""
        mark, name = uuid.uuid4().hex, re.sub(r'["\r\n]', "_", picture.name)
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        try:
            body = head.encode() + picture.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        except OSError as error:
            raise Failed(f"{picture} cannot be read ({error.strerror}).") from None
        return self.ask("/upload/image", body, f"multipart/form-data; boundary={mark}")["name"]

    def run(self, prompt: dict) -> list[dict]:
        """Queues the prompt, follows it to its end, and returns the files it saved."""
        client = uuid.uuid4().hex
        self.ask("/system_stats")  # raises a clear error if there is no server
        # The socket opens first: events before it are lost.
        address = self.url.replace("http", "ws", 1) + f"/ws?clientId={client}"
        try:
            events = websocket.create_connection(address, timeout=60)
        except (websocket.WebSocketException, OSError) as error:
            raise Failed(f"{self.url} does not accept websockets ({error}): enable them in its proxy.") from None
        try:
            queued = self.ask("/prompt", json.dumps({"prompt": prompt, "client_id": client}).encode())
            self.follow(events, queued["prompt_id"], prompt)
        finally:
            events.close()
        return self.files(queued["prompt_id"])

    def follow(self, events: websocket.WebSocket, prompt_id: str, prompt: dict) -> None:
        while True:
            try:
                message = events.recv()
            except websocket.WebSocketTimeoutException:
                self.request("/system_stats")  # a step may take minutes; only a server that is gone is an error
                continue
            except (websocket.WebSocketException, OSError):
                raise Failed("The connection to ComfyUI broke while it worked; its console says why.") from None
            if not message:
                raise Failed("ComfyUI closed the connection while it worked; its console says why.")
            if isinstance(message, bytes):
                continue  # a preview
            event = json.loads(message)
            kind, data = event["type"], event.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "execution_error":
                raise Failed(f"{data['node_type']} (node {data['node_id']}): {data['exception_message'].strip()}")
            if kind == "execution_interrupted":
                raise Failed("The run was interrupted.")
            if kind == "progress" and prompt.get(data["node"]):
                say(f"  {data['value']} of {data['max']}")
            if kind == "executing":
                if data["node"] is None:
                    return
                if data["node"] in prompt:
                    say(title(prompt[data["node"]]))

    def files(self, prompt_id: str) -> list[dict]:
        end = time.monotonic() + HISTORY_LAG
        while prompt_id not in (history := self.ask(f"/history/{prompt_id}")):
            if time.monotonic() > end:
                raise Failed("ComfyUI finished the run and lists no result for it.")
            time.sleep(0.1)
        outputs = history[prompt_id]["outputs"].values()
        items = [item for output in outputs for value in output.values() if isinstance(value, list) for item in value]
        return [item for item in items if isinstance(item, dict) and item.get("type") == "output"]

    def download(self, file: dict) -> bytes:
        return self.request("/view?" + urllib.parse.urlencode({k: file[k] for k in ("filename", "subfolder", "type")}))


def is_api_format(prompt: object) -> bool:
    nodes = prompt.values() if isinstance(prompt, dict) else ()
    return bool(nodes) and all(
        isinstance(n, dict) and "class_type" in n and isinstance(n.get("inputs"), dict) for n in nodes
    )


def save(target: Path, content: bytes) -> None:
    """Writes a file that is whole or not there."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise Failed(f"{target} cannot be written ({error.strerror}): give another --out.") from None


def title(node: dict) -> str:
    return node.get("_meta", {}).get("title") or node["class_type"]


def refusal(code: int, body: bytes) -> str:
    """The sentences of an error answer; POST /prompt says what is wrong with which node."""
    try:
        answer = json.loads(body)
        lines = [answer["error"]["message"] if isinstance(answer["error"], dict) else str(answer["error"])]
        for node_id, node in (answer.get("node_errors") or {}).items():
            for error in node["errors"]:
                details = error["details"] if len(error["details"]) < 400 else error["details"][:400] + " ..."
                lines.append(f"{node['class_type']} (node {node_id}): {error['message']}: {details}")
        return "\n".join(lines)
    except (ValueError, KeyError, TypeError):
        return f"ComfyUI answered {code}."


def holding(prompt: dict, *names: str) -> list[dict]:
    """The inputs of every node that has all of these."""
    return [node["inputs"] for node in prompt.values() if set(names) <= node["inputs"].keys()]


def change(prompt: dict, values: dict) -> None:
    """Writes the values into every node that has all of these inputs."""
    places = holding(prompt, *values)
    if not places:
        raise Failed(f"This workflow has no {' and '.join(values)} to change.")
    for inputs in places:
        inputs.update(values)


def fitted(prompt: dict, options: argparse.Namespace, image: str | None) -> dict:
    """The workflow with what the command line asks for."""
    if options.prompt is not None:
        if len(holding(prompt, "text")) != 1:
            raise Failed("This workflow has not exactly one prompt: write yours into the file.")
        change(prompt, {"text": options.prompt})
    if image is not None:
        loaders = [node["inputs"] for node in prompt.values() if node["class_type"] == "LoadImage"]
        if not loaders:
            raise Failed("This workflow does not start from a picture: leave --image out.")
        for inputs in loaders:
            inputs["image"] = image
    if options.seed is not None:
        change(prompt, {"seed": options.seed})
    if options.size is not None:
        change(prompt, {"width": options.size[0], "height": options.size[1]})
    if options.length is not None:
        change(prompt, {"length": options.length})
    return prompt


def size(text: str) -> tuple[int, int]:
    width, height = map(int, text.lower().split("x"))
    if width % 16 or height % 16:
        raise argparse.ArgumentTypeError("width and height must be multiples of 16, for example 832x480")
    return width, height


def length(text: str) -> int:
    if int(text) % 4 != 1:
        raise argparse.ArgumentTypeError("the models make 4n+1 frames, for example 81")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs an API-format workflow and downloads its files.")
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--prompt", help="long and in English")
    parser.add_argument("--image", type=Path, help="the first frame, for image-to-video workflows")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--size", type=size, metavar="WIDTHxHEIGHT")
    parser.add_argument("--length", type=length, help="frames, 4n+1")
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--out", type=Path, default=Path(), help="a file, or the folder for all files (default: here)")
    options = parser.parse_args()
    server = Server(options.server)
    try:
        try:
            prompt = json.loads(options.workflow.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise Failed(f"{options.workflow} cannot be read ({error}).") from None
        if not is_api_format(prompt):
            raise Failed(
                f"{options.workflow} is not in API format: take one of workflows/api, or export it with Export (API)."
            )
        image = server.upload(options.image) if options.image else None
        files = server.run(fitted(prompt, options, image))
        if not files:
            raise Failed("The run saved no file.")
        for file in files:
            is_folder = options.out.is_dir() or len(files) > 1 or not options.out.suffix
            target = options.out / Path(file["filename"]).name if is_folder else options.out
            save(target, server.download(file))
            print(target)
    except Failed as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

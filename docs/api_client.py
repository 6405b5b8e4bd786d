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

NO_COMFYUI = "What answers at {} is not a ComfyUI: give its address with --server."
ANSWER_SECONDS = 60.0  # for an answer, and a second more for each MB of it
LONGEST_JSON, LONGEST_FILE = 32 << 20, 4 << 30  # bytes
LONGEST_TEXT = 4000  # characters of a message
HISTORY_LAG = 10.0  # seconds by which /history may trail the last event


class Failed(Exception):
    """A failure whose message is shown to the user."""


def say(text: str) -> None:
    shown = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."
    print(shown.encode(errors="replace").decode(), file=sys.stderr, flush=True)  # stderr escapes what it cannot encode


class Server:
    def __init__(self, url: str):
        scheme, _, rest = url.strip().rpartition("://")
        self.url = f"{scheme.lower() or 'http'}://{rest.strip('/')}"

    def request(
        self,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        most: int = LONGEST_JSON,
    ) -> bytes:
        try:
            request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return read(answer, most)
        except urllib.error.HTTPError as error:
            with contextlib.suppress(OSError, http.client.HTTPException):
                raise Failed(refusal(error.code, read(error, LONGEST_JSON))) from None
            raise Failed(f"ComfyUI answered {error.code}.") from None
        except (OSError, http.client.HTTPException, ValueError) as error:  # no answer, one of another kind, no address
            reason = str(getattr(error, "reason", error)).strip()
            raise Failed(f"ComfyUI does not answer at {self.url} ({reason}): start it, or give --server.") from None

    def ask(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> dict:
        """What the server answers in JSON."""
        answer = parsed(self.request(path, body, content_type))
        if not isinstance(answer, dict):
            raise Failed(NO_COMFYUI.format(self.url))
        return answer

    def text(self, answer: object, key: str) -> str:
        """A text in an answer of the server."""
        value = answer.get(key) if isinstance(answer, dict) else None
        if not isinstance(value, str):
            raise Failed(NO_COMFYUI.format(self.url))
        return value

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
        return self.text(self.ask("/upload/image", body, f"multipart/form-data; boundary={mark}"), "name")

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
            answer = self.ask("/prompt", json.dumps({"prompt": prompt, "client_id": client}).encode())
            prompt_id = self.text(answer, "prompt_id")
            self.follow(events, prompt_id, prompt)
        finally:
            events.close()
        return self.files(prompt_id)

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
            event = parsed(message)
            data = event.get("data") if isinstance(event, dict) else None
            if not isinstance(data, dict) or data.get("prompt_id") != prompt_id:
                continue
            kind, node = event.get("type"), data.get("node")
            if kind == "execution_error":
                reason = str(data.get("exception_message")).strip()
                raise Failed(f"{data.get('node_type')} (node {data.get('node_id')}): {reason}")
            if kind == "execution_interrupted":
                raise Failed("The run was interrupted.")
            if kind == "executing" and node is None:
                return
            if isinstance(node, str) and node in prompt:
                if kind == "progress":
                    say(f"  {data.get('value')} of {data.get('max')}")
                if kind == "executing":
                    say(title(prompt[node]))

    def files(self, prompt_id: str) -> list[dict]:
        end = time.monotonic() + HISTORY_LAG
        while prompt_id not in (history := self.ask(f"/history/{prompt_id}")):
            if time.monotonic() > end:
                raise Failed("ComfyUI finished the run and lists no result for it.")
            time.sleep(0.1)
        entry = history[prompt_id]
        outputs = entry.get("outputs") if isinstance(entry, dict) else None
        if not isinstance(outputs, dict):
            raise Failed(NO_COMFYUI.format(self.url))
        kinds = [kind for output in outputs.values() if isinstance(output, dict) for kind in output.values()]
        items = [item for kind in kinds if isinstance(kind, list) for item in kind]
        return [item for item in items if isinstance(item, dict) and item.get("type") == "output"]

    def download(self, file: dict) -> bytes:
        place = {key: self.text(file, key) for key in ("filename", "subfolder", "type")}
        return self.request(f"/view?{urllib.parse.urlencode(place, errors='replace')}", most=LONGEST_FILE)


def read(answer, most: int) -> bytes:
    """The body of an answer of at most that many bytes; one that trickles in or has no end is an OSError."""
    end, body = time.monotonic() + ANSWER_SECONDS, bytearray()
    while chunk := answer.read1(1 << 16):
        body += chunk
        if len(body) > most or time.monotonic() > end + len(body) / 1e6:
            raise OSError("its answer is too long or too slow")
    return bytes(body)


def parsed(text: bytes | str) -> object:
    """What a text holds in JSON, None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def is_api_format(prompt: object) -> bool:
    nodes = prompt.values() if isinstance(prompt, dict) else ()
    return bool(nodes) and all(
        isinstance(n, dict) and "class_type" in n and isinstance(n.get("inputs"), dict) for n in nodes
    )


def file_name(given: str) -> str:
    """The last part of a name that the server gives, as a name for a file here."""
    name = "".join(char if char.isprintable() else "_" for char in given.replace("\\", "/")).rpartition("/")[2]
    if name.strip(". ") == "":
        raise Failed(f"The server names a file {given!r}: give --out a file name.")
    return name


def save(target: Path, content: bytes) -> None:
    """Writes a file that is whole or not there."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(target)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError):
            partial.unlink()
        reason = getattr(error, "strerror", None) or error
        raise Failed(f"{target} cannot be written ({reason}): give another --out.") from None


def title(node: dict) -> str:
    return node.get("_meta", {}).get("title") or node["class_type"]


def refusal(code: int, body: bytes) -> str:
    """The sentences of an error answer; POST /prompt says what is wrong with which node."""
    try:
        answer = parsed(body)
        lines = [answer["error"]["message"] if isinstance(answer["error"], dict) else str(answer["error"])]
        for node_id, node in (answer.get("node_errors") or {}).items():
            for error in node["errors"]:
                details = error["details"] if len(error["details"]) < 400 else error["details"][:400] + " ..."
                lines.append(f"{node['class_type']} (node {node_id}): {error['message']}: {details}")
        return "\n".join(lines)
    except (KeyError, TypeError, AttributeError):
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
            target = options.out / file_name(server.text(file, "filename")) if is_folder else options.out
            save(target, server.download(file))
            print(target)
    except Failed as error:
        say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A web server that speaks the part of Hugging Face's protocol that a download uses: a HEAD on the file states size
and SHA-256 and redirects to a store, which serves byte ranges."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_right"


class HubServer:
    """Serves `files` ("OWNER/NAME/PATH": content). The public attributes are how it misbehaves, and what it saw."""

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.gated: str | None = None  # None, "GatedRepo" or "RepoNotFound" for requests without the token
        self.claimed_size: int | None = None  # what it states instead of the real size
        self.moved = False  # whether repositories have another name, as after a renaming
        self.cuts: list[int] = []  # the next transfers end after so many bytes
        self.is_stalled = threading.Event()  # set when a transfer waits at `stall_at`
        self.stall_at: int | None = None
        self.damaged = False
        self.ranges: list[str | None] = []  # of the requests to the store
        self.tokens_at_store: list[str | None] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._end = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._end.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def log_message(self, *_):
                pass

            def answer(self):
                path = self.path.lstrip("/").partition("?")[0]
                if path.startswith("store/"):
                    return self.serve(hub.files[path.removeprefix("store/")])
                owner, repo, _, revision, *rest = path.split("/")
                name = "/".join((owner.removeprefix("new-"), repo, *rest))
                if hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    status = 403 if hub.gated == "GatedRepo" and self.headers.get("Authorization") else 401
                    return self.say(status, **{"X-Error-Code": hub.gated, "X-Error-Message": "not for you"})
                if name not in hub.files or revision != "main":
                    return self.say(404, **{"X-Error-Code": "EntryNotFound"})
                if hub.moved and not owner.startswith("new-"):
                    return self.say(307, Location=f"/new-{path}")
                content = hub.files[name]
                self.say(
                    302,
                    Location=f"http://localhost:{self.server.server_port}/store/{name}",
                    **{
                        "X-Repo-Commit": "c" * 40,
                        "X-Linked-Size": str(hub.claimed_size or len(content)),
                        "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                    },
                )

            def say(self, status: int, **headers: str):
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def serve(self, content: bytes):
                asked = self.headers.get("Range")
                hub.ranges.append(asked)
                hub.tokens_at_store.append(self.headers.get("Authorization"))
                begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                length = str(len(content) - begin)
                place = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if asked else {}
                self.say(206 if asked else 200, **{"Content-Length": length, **place})
                sent = content[begin:]
                if hub.damaged:
                    sent = sent[:-1] + bytes([sent[-1] ^ 1])
                if hub.stall_at is not None:
                    self.wfile.write(sent[: hub.stall_at])
                    self.wfile.flush()
                    hub.is_stalled.set()
                    hub._end.wait()
                elif hub.cuts:
                    self.wfile.write(sent[: hub.cuts.pop(0)])
                    self.close_connection = True
                else:
                    self.wfile.write(sent)

        return Handler

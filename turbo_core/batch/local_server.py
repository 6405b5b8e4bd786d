"""A headless ComfyUI process that ends with the process that started it, however that one ends."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from .client import Client

BOOT_SECONDS = 900.0
_LOG_LIMIT = 64 * 1024

_PREFIX = "turbodiffusion-batch-"
_LOCK, _LOG = ".lock", "server.log"

# Runs ComfyUI's main.py and watches its stdin, a pipe from the process that started it: when that process has ended,
# killed or not, the pipe is closed, and the server exits. Passed as text, since the machines of a cluster need not have
# this file at this path.
_MAIN = """
import os, runpy, sys, threading
def watch():
    os.read(0, 1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ServerFailed(Exception):
    """The server did not come up; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class ServerSettings:
    """How to start a server. `python` and `comfyui` are paths on the machine where it runs."""

    comfyui: str
    python: str = ""
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class LocalServer:
    """A server process that was started here, with folders for its input, output and temporary files that no other
    server uses."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path, lock: FileLock, url: str):
        self._process, self._lock = process, lock
        self._log = (folder / _LOG).open("rb")
        self.folder, self.url = folder, url

    @classmethod
    async def start(cls, settings: ServerSettings) -> "LocalServer":
        """Starts a server and waits until it answers. Raises ServerFailed."""
        main = Path(settings.comfyui) / "main.py"
        if not main.is_file():
            raise ServerFailed(f"{main} is not there; give this machine's ComfyUI folder with --comfyui.")
        _remove_leftovers()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        lock = FileLock(folder / _LOCK)
        lock.acquire()
        port = free_port()
        server = cls(
            _popen(_command(settings, main, folder, port), folder, settings), folder, lock, f"http://127.0.0.1:{port}"
        )
        try:
            await server._wait_until_ready()
        except BaseException:
            server.stop()
            raise
        return server

    async def _wait_until_ready(self) -> None:
        end = time.monotonic() + BOOT_SECONDS
        async with Client(self.url) as client:
            while not await client.is_ready():
                if not self.is_running() or time.monotonic() > end:
                    raise ServerFailed(f"ComfyUI did not start; the end of its log:\n{self.log()[-4000:]}")
                await asyncio.sleep(0.2)

    def is_running(self) -> bool:
        """Whether the process has not ended; it may not answer yet."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._process.pid

    def log_size(self) -> int:
        """Bytes of log that the server has written."""
        return 0 if self._log.closed else os.fstat(self._log.fileno()).st_size

    def log(self, start: int = 0) -> str:
        """What the server wrote from that byte on, or the end of it where that is long."""
        if self._log.closed:
            return ""
        self._log.seek(max(start, self.log_size() - _LOG_LIMIT))
        return self._log.read().decode("utf-8", "replace")

    def stop(self) -> None:
        """Ends the server; harmless when it has ended."""
        if self._log.closed:
            return
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._log.close()
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def _command(settings: ServerSettings, main: Path, folder: Path, port: int) -> list[str]:
    python = settings.python or sys.executable
    command = [python, "-c", _MAIN, str(main.resolve()), "--listen", "127.0.0.1", "--port", str(port)]
    for name in ("input", "output", "temp"):
        (folder / name).mkdir()
        command += [f"--{name}-directory", str(folder / name)]
    return [*command, "--database-url", "sqlite:///:memory:", "--disable-auto-launch", *settings.arguments]


def _popen(command: list[str], folder: Path, settings: ServerSettings) -> "subprocess.Popen[bytes]":
    with (folder / _LOG).open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | settings.environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the batch, which then ends the server
        )


def _remove_leftovers() -> None:
    """Removes the folders of servers whose starter was killed; the system has released their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            if (folder / _LOCK).exists():
                FileLock(folder / _LOCK).acquire(timeout=0).lock.release()
                shutil.rmtree(folder, ignore_errors=True)

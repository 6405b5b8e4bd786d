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
_LOCK = ".lock"

# ComfyUI's main.py with a watch on its input, a pipe from the process that started it: when that one is gone, killed or not, the
# pipe ends, and with it the server. Given as text, since the machines of a cluster need not have this file at this path.
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
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class LocalServer:
    """One server process with folders of its own for input, output and temporary files."""

    def __init__(self, settings: ServerSettings):
        self._settings = settings
        self._process = None

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    async def start(self) -> None:
        """Starts the server and waits until it answers. Raises ServerFailed."""
        self.stop()
        main = Path(self._settings.comfyui) / "main.py"
        if not main.is_file():
            raise ServerFailed(f"{main} is not there; give this machine's ComfyUI folder with --comfyui.")
        _remove_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = FileLock(self.folder / _LOCK)
        self._lock.acquire()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        python = self._settings.python or sys.executable
        command = [python, "-c", _MAIN, str(main.resolve()), "--listen", "127.0.0.1", "--port", str(port)]
        for name in ("input", "output", "temp"):
            (self.folder / name).mkdir()
            command += [f"--{name}-directory", str(self.folder / name)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", *self._settings.arguments]
        with (self.folder / "server.log").open("wb") as log:
            self._process = self._popen(command, log)
            self._log = (self.folder / "server.log").open("rb")
        end = time.monotonic() + BOOT_SECONDS
        async with Client(self.url) as client:
            while not await client.is_ready():
                if not self.is_running() or time.monotonic() > end:
                    text = self.log()[-4000:]
                    self.stop()
                    raise ServerFailed(f"ComfyUI did not start; the end of its log:\n{text}")
                await asyncio.sleep(0.2)

    def _popen(self, command: list[str], log) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | self._settings.environment,
            start_new_session=True,  # Ctrl-C in the terminal is for the batch, which then ends the server
        )

    def log_size(self) -> int:
        return os.fstat(self._log.fileno()).st_size

    def log(self, start: int = 0) -> str:
        """What the server wrote from that byte on, or the end of it where that is long."""
        if self._log.closed:
            return ""
        self._log.seek(max(start, self.log_size() - _LOG_LIMIT))
        return self._log.read().decode("utf-8", "replace")

    def stop(self) -> None:
        """Ends the server; harmless when it has ended."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process = None
        self._log.close()
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def _remove_leftovers() -> None:
    """Removes the folders of servers whose starter was killed; the system let go of its locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            if (folder / _LOCK).exists():
                FileLock(folder / _LOCK).acquire(timeout=0).lock.release()
                shutil.rmtree(folder, ignore_errors=True)

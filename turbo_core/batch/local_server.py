"""A headless ComfyUI process that ends with the process that started it, however that one ends."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from .client import Client

BOOT_SECONDS = 900.0
_LOG_LIMIT = 64 * 1024

# Runs beside the server with a pipe as its input: when the starter is gone, killed or not, the pipe ends, and with it the server
# and its folder. Given as text, since the machines of a cluster need not have this file at this path.
_KEEPER = """
import os, shutil, subprocess, sys, threading
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
def watch():
    os.read(0, 1)
    server.kill()
threading.Thread(target=watch, daemon=True).start()
code = server.wait()
shutil.rmtree(sys.argv[1], ignore_errors=True)
os._exit(code & 255)
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
        self._keeper = None

    def is_running(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    async def start(self) -> None:
        """Starts the server and waits until it answers. Raises ServerFailed."""
        self.stop()
        main = Path(self._settings.comfyui) / "main.py"
        if not main.is_file():
            raise ServerFailed(f"{main} is not there; give this machine's ComfyUI folder with --comfyui.")
        self.folder = Path(tempfile.mkdtemp(prefix="turbodiffusion-batch-"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        python = self._settings.python or sys.executable
        command = [
            python,
            "-c",
            _KEEPER,
            str(self.folder),
            python,
            str(main),
            "--listen",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        for name in ("input", "output", "temp"):
            (self.folder / name).mkdir()
            command += [f"--{name}-directory", str(self.folder / name)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch", *self._settings.arguments]
        with (self.folder / "server.log").open("wb") as log:
            self._keeper = self._popen(command, log)
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
        self._log.seek(max(start, self.log_size() - _LOG_LIMIT))
        return self._log.read().decode("utf-8", "replace")

    def stop(self) -> None:
        """Ends the server; harmless when it has ended."""
        if self._keeper is None:
            return
        self._keeper.stdin.close()
        try:
            self._keeper.wait(30)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._log.close()
        self._keeper = None
        shutil.rmtree(self.folder, ignore_errors=True)

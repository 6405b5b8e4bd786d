"""A real, headless ComfyUI server with the pack installed, for the tests and the demo."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from .client import ComfyClient
from .host import comfyui_path

ROOT = Path(__file__).resolve().parents[2]
NOT_INSTALLED = shutil.ignore_patterns(".*", "__pycache__", "demo_output")
FAILURES = ("IMPORT FAILED", "Cannot import")


class ServerFailed(RuntimeError):
    """The server did not start, or started without one of the node packs."""


def install(pack: Path, folder: Path) -> None:
    """Links the pack, or copies it where links are not allowed (Windows). What an earlier start left stays."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.symlink_to(pack, target_is_directory=True)
    except OSError:
        shutil.copytree(pack, folder, ignore=NOT_INSTALLED)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class ComfyServer:
    """A context manager: inside it the server answers at `url` and through `client`.

    `base` becomes ComfyUI's base directory, and holds the log. `extra_arguments` go to main.py. `launcher`: what Python
    runs instead of main.py, a program that starts it with devices that this process lacks.
    """

    def __init__(
        self,
        base: Path,
        *,
        pack_name: str = "turbodiffusion",
        test_nodes: bool = False,
        extra_arguments: tuple[str, ...] = (),
        extra_environment: dict[str, str] | None = None,
        launcher: tuple[str, ...] = (),
    ):
        self.base = Path(base)
        self.pack_name = pack_name
        self.models_dir, self.input_dir, self.output_dir = (self.base / n for n in ("models", "input", "output"))
        self.log_path = self.base / "server.log"
        self._packs = {pack_name: ROOT}
        if test_nodes:
            self._packs |= {
                "test_nodes": ROOT / "tests" / "server_nodes",
                "toy_nodes": ROOT / "tests" / "tiny" / "nodes",
            }
        needs_cpu = not launcher and not torch.cuda.is_available()
        self._arguments = ("--cpu", *extra_arguments) if needs_cpu else extra_arguments
        self._launcher = launcher
        self._environment = os.environ | (extra_environment or {})
        self._process = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = ComfyClient(self.url)

    def __enter__(self) -> "ComfyServer":
        for folder in (self.models_dir, self.input_dir, self.output_dir):
            folder.mkdir(parents=True, exist_ok=True)
        for name, pack in self._packs.items():
            install(pack, self.base / "custom_nodes" / name)
        command = [
            sys.executable,
            *self._launcher,
            str(Path(comfyui_path()) / "main.py"),
            "--base-directory",
            str(self.base),
            "--database-url",
            "sqlite:///:memory:",
            "--disable-api-nodes",
            "--preview-method",
            "latent2rgb",
            "--listen",
            "127.0.0.1",
            "--port",
            str(self.port),
            *self._arguments,
        ]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.base,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process, while inside the context."""
        return self._process.pid

    def log(self) -> str:
        """All that the server wrote so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Ends the server as a crash does."""
        self._process.kill()

    def stop(self) -> None:
        """Ends the server; harmless when it has ended."""
        self._process.terminate()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait_until_ready(self, timeout: float = 180) -> None:
        end = time.monotonic() + timeout
        while not self.client.is_ready():
            if self._process.poll() is not None:
                raise ServerFailed(f"ComfyUI ended with code {self._process.returncode}:\n{self._last_lines()}")
            if time.monotonic() > end:
                raise ServerFailed(f"ComfyUI was not ready after {timeout:.0f} s:\n{self._last_lines()}")
            time.sleep(0.2)
        if any(failure in self.log() for failure in FAILURES):
            raise ServerFailed(f"ComfyUI could not import a node pack:\n{self._last_lines()}")

    def _last_lines(self, count: int = 60) -> str:
        return "\n".join(self.log().splitlines()[-count:])

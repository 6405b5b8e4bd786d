"""The process of a rank, as a Ray actor. Ray sends this class by value, since the pack's modules have another name
there: it imports nothing of the pack before it has put ComfyUI and the pack on the path."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


class Actor:
    """A process with ComfyUI's modules and the pack, but without a server."""

    def __init__(self, environment: dict[str, str], comfyui: str, pack: str):
        """`environment` is set before anything of CUDA is imported; `comfyui` and `pack` are folders."""
        os.environ.update(environment)
        sys.path.insert(0, comfyui)
        spec = importlib.util.spec_from_file_location("turbodiffusion_cli", Path(pack, "cli.py"))
        assert spec and spec.loader  # None only for a file whose suffix no loader handles
        cli = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(cli)
        cli.load_pack()
        self._rank: Any = None

    def start(self, options: dict[str, Any], threads: int) -> str:
        """The first time, imports ComfyUI with the options of the other process's command line. Returns the device.

        Not part of the constructor, because unpickling the options needs ComfyUI on the path."""
        if self._rank is None:
            importlib.import_module("comfy.options").enable_args_parsing(False)
            vars(importlib.import_module("comfy.cli_args").args).update(options)
            self._rank = importlib.import_module("td_pack.turbo_core.host.rank").Rank(threads)
        device: str = self._rank.device()
        return device

    def host(self) -> str:
        """The address of this machine in the cluster."""
        import ray

        address: str = ray.util.get_node_ip_address()
        return address

    def call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of Rank and returns its result."""
        return getattr(self._rank, method)(*arguments)

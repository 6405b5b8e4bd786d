"""Makes the pack importable as `td_pack` with ComfyUI's modules beside it, and offers the shared live server."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _load_pack() -> None:
    """Imports the pack the way ComfyUI does (by path); the root itself must not be on sys.path, where `nodes/`
    would shadow ComfyUI's nodes.py."""
    sys.path[:] = [p for p in sys.path if Path(p or os.curdir).resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "td_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["td_pack"] = module
    spec.loader.exec_module(module)


def _prepare() -> None:
    _load_pack()
    from td_pack.tests.support import host, interpreter

    interpreter.install()  # before ComfyUI's modules, which import triton
    if "COMFYUI_PATH" in os.environ:  # tests/kernels need none, and run where there are only torch, triton and pytest
        host.load_host()


_prepare()


def pytest_addoption(parser):
    parser.addoption(
        "--simulated",
        metavar="WHAT",
        default="quick",
        choices=("quick", "all", "80", "86", "89", "90", "120"),
        help="compiled kernels in the emulator: quick (a few cases for 8.0, the default), a compute capability, or all of them",
    )
    parser.addoption("--long", action="store_true", help="fuzz for hours instead of seconds, drawn anew each time")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One live ComfyUI for the whole run: the pack under an odd folder name, the test nodes, tiny checkpoints."""
    from td_pack.tests.support import checkpoints, lingbot
    from td_pack.tests.support.server import ComfyServer

    base = tmp_path_factory.mktemp("comfyui")
    checkpoints.write_models(base / "models")
    lingbot.write_models(base / "models")
    # Tensors get pages of their own, so that a test which limits memory does not depend on what the heap has left over.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536"}
    with ComfyServer(base, pack_name="odd_name-1.0.main", test_nodes=True, extra_environment=environment) as running:
        yield running

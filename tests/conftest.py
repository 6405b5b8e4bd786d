"""Makes the pack importable as `td_pack` with ComfyUI's modules beside it, and offers the shared live server."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _prepare() -> None:
    sys.path.insert(0, str(ROOT))
    import cli

    cli.load_pack()  # which removes the root from sys.path
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
        choices=("quick", "all", "80", "86", "89", "90", "100", "120"),
        help="compiled kernels in the emulator: quick (a few cases for 8.0, the default), a compute capability, or "
        "all of them",
    )
    parser.addoption("--long", action="store_true", help="fuzz for hours instead of seconds, drawn anew each time")


@pytest.fixture
def examples(request):
    """Settings for a property with that many examples, seeded; with `--long` `times` as many, drawn anew each time."""
    from hypothesis import HealthCheck, settings

    is_long = request.config.getoption("--long")
    fixed = dict(derandomize=not is_long, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    return lambda count, times: settings(max_examples=count * times if is_long else count, **fixed)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One live ComfyUI for the whole run: the pack under an odd folder name, the test nodes, tiny checkpoints."""
    from td_pack.tests.support import checkpoints, clip_vision, lingbot
    from td_pack.tests.support.server import ComfyServer

    base = tmp_path_factory.mktemp("comfyui")
    checkpoints.write_models(base / "models")
    lingbot.write_models(base / "models")
    clip_vision.write(base / "models" / "clip_vision" / clip_vision.FILE)
    with ComfyServer(base, pack_name="odd_name-1.0.main", test_nodes=True) as running:
        yield running

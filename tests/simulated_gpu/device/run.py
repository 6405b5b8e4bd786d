"""Runs tests in a process of their own, on simulated devices."""

import os
import subprocess
import sys

import pytest

from ...support.environment import cache_dir
from .build import unavailable
from .settings import LAUNCH, Devices


def require_device() -> None:
    """Skips a test where the device cannot be made, with the reason."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)


def variables(devices: Devices) -> dict[str, str]:
    """The environment of a process on these devices, over this one's, in which tests may have turned Triton's
    interpreter on: it is off there. One thread, Triton's cache of dev.py."""
    cache = os.environ.get("TRITON_CACHE_DIR", str(cache_dir() / "triton"))
    own = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    return os.environ | own | devices.environment()


def run_pytest(devices: Devices, *arguments: str) -> str:
    """Runs tests there and returns pytest's output. Fails the test that calls it, with that output, if one of them does
    or none ran."""
    command = [sys.executable, str(LAUNCH), "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    done = subprocess.run(command, env=variables(devices), capture_output=True, text=True)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-20000:]}{done.stderr[-10000:]}"
    return done.stdout

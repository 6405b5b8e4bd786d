"""The simulated device itself: checks.py, in a process that has two."""

from pathlib import Path

from .run import require_device, run_pytest
from .settings import Devices

CHECKS = Path(__file__).with_name("checks.py")


def test_the_device_does_what_cuda_promises():
    require_device()
    print(run_pytest(Devices(count=2, memory=256 << 20), str(CHECKS)))

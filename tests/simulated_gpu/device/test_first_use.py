"""The kernels of a model's first step were compiled before it, in the background."""

import json
import subprocess
import sys
from pathlib import Path

from .run import require_device, variables
from .settings import LAUNCH, Devices


def test_a_first_step_compiles_nothing():
    """Self-tests included: whatever a step launches was listed when the model was loaded."""
    require_device()
    command = [sys.executable, str(LAUNCH), str(Path(__file__).with_name("first_use.py"))]
    done = subprocess.run(command, env=variables(Devices()), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert {name: each["in the step"] for name, each in said["models"].items()} == dict.fromkeys(said["models"], [])
    assert all(each["ahead"] > 0 for each in said["models"].values())
    assert said["threads"] == ["turbodiffusion-compile"]

"""`dev.py test`: ruff, then pytest. A run of chosen files is pytest alone, so that a single test starts at once."""

import os
import subprocess
import sys
from pathlib import Path

from .environment import become

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    if is_whole_run(arguments):
        for check in (["ruff", "check"], ["ruff", "format", "--check"]):
            if code := subprocess.call([sys.executable, "-m", *check, "--quiet", "."]):
                return code
    return become(sys.executable, "-m", "pytest", *arguments)


def is_whole_run(arguments: list[str]) -> bool:
    """Whether pytest is given no file, no folder and no test of a file."""
    return not any(Path(argument.partition("::")[0]).exists() for argument in arguments)

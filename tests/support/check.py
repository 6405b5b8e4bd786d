"""`dev.py test`: the linter, then pytest; the exit code is theirs."""

import os
import subprocess
import sys
from pathlib import Path

from .environment import become

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    lint = subprocess.call([sys.executable, "-m", "ruff", "check", "."])
    return lint or become(sys.executable, "-m", "pytest", *arguments)

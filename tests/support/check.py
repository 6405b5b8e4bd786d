"""`dev.py test`: the linter, then pytest; the exit code is theirs."""
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    for command in (["ruff", "check", "."], ["pytest", *arguments]):
        code = subprocess.call([sys.executable, "-m", *command], cwd=ROOT)
        if code:
            return code
    return 0

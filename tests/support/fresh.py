"""The pack in a new interpreter, to measure what an import costs and what it loads."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRELUDE = f"""
import importlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from cli import load_pack
"""


def fresh(code: str, folder: Path) -> str:
    """Runs `code` in a new interpreter, where `load_pack` is cli.py's, and returns what it printed."""
    done = subprocess.run([sys.executable, "-c", PRELUDE + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

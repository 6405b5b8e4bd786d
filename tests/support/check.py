"""`dev.py test`: ruff, mypy, then pytest. A run of chosen files is pytest alone, so that a single test starts at
once."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from .environment import become, cache_dir, say

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    if is_whole_run(arguments):
        for check in (["ruff", "check"], ["ruff", "format", "--check"]):
            if code := subprocess.call([sys.executable, "-m", *check, "--quiet", "."]):
                return code
        if code := check_types():
            return code
    return become(sys.executable, "-m", "pytest", *arguments)


def is_whole_run(arguments: list[str]) -> bool:
    """Whether pytest is given no file, no folder and no test of a file."""
    return not any(Path(argument.partition("::")[0]).exists() for argument in arguments)


def check_types() -> int:
    """Runs mypy over the product and returns its exit code; 0, with a message, where links are not allowed.

    mypy takes a package by name, and the checkout's folder may have any: it runs in a folder of the cache, where a link
    of the name `td_pack` leads to the checkout. Each checkout has its own folder there, which also keeps mypy's cache.
    """
    folder = cache_dir() / "mypy" / hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "td_pack"
    if not link.exists():
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(ROOT, target_is_directory=True)
        except OSError as error:
            say(f"types are not checked: this system does not let us make a link ({error})")
            return 0
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "td_pack"]
    return subprocess.call([*command, "--cache-dir", str(folder / "cache")], cwd=folder)

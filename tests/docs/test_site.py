"""The site of docs/ builds without a warning: every page is in its menu, every link leads somewhere."""

import subprocess
import sys

import pytest
from td_pack.tests.support.server import ROOT


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed here: dev.py's own environment has it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".github/mkdocs.yml", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "benchmarks" / "load" / "index.html").is_file()

"""The pack in an interpreter of its own, where what an import costs and what it misses can be seen."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def fresh(code: str, folder: Path) -> str:
    """What a new interpreter prints that loaded the pack as `pack`, by path as ComfyUI does, then ran `code`."""
    prelude = f"""
import importlib.util, sys, time
def load():
    spec = importlib.util.spec_from_file_location("pack", {str(ROOT / "__init__.py")!r}, submodule_search_locations=[{str(ROOT)!r}])
    sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
"""
    done = subprocess.run([sys.executable, "-c", prelude + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

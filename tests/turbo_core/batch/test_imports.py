"""Ray is optional, and nothing that ComfyUI imports knows the batch tool."""

import ast
import subprocess
import sys
from pathlib import Path

from td_pack.tests.support.fresh import PRELUDE
from td_pack.tests.support.server import ROOT

BATCH = ROOT / "turbo_core" / "batch"


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module or ''}.{name.name}" for name in node.names}
    return found


def test_one_file_imports_ray():
    users = [path.name for path in BATCH.glob("*.py") if any(name.split(".")[0] == "ray" for name in imported(path))]
    assert users == ["ray_workers.py"]


def test_no_other_part_of_the_pack_imports_it():
    others = [
        path
        for folder in ("nodes", "turbo_core", "kernels")
        for path in (ROOT / folder).rglob("*.py")
        if BATCH not in path.parents
    ]
    assert others
    assert not [path for path in others if any("batch" in name.split(".") for name in imported(path))]


def test_without_ray_the_command_says_how_to_get_it(tmp_path):
    code = (
        f"{PRELUDE}load_pack()\n"
        "sys.modules['ray'] = None\n"
        "from td_pack.turbo_core.batch.cli import main\n"
        "sys.exit(main(['--seeds', '1', '--workflow', "
        f"{str(ROOT / 'workflows/api/TurboWan2.1-T2V-1.3B-480P.json')!r}, '--ray', 'local', '--out', 'x']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("batch: --ray needs Ray (") and done.stderr.rstrip().endswith("-m pip install ray")

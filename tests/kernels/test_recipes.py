"""The recipes in CONTRIBUTING.md work as written: an operator and a backend are added to a copy of `kernels/`."""

import re
import shutil
import subprocess
import sys

import pytest
from td_pack.tests.support.kernels import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
FILES = {block.split("\n")[0].removeprefix("# "): block for block in BLOCKS if block.startswith("# kernels/")}
ROWS = re.findall(r"^```text\n(    Backend\(.*\n)```", TEXT, re.MULTILINE)
USE = """
import torch
from kernels.scaled_add.custom_ops import SCALED_ADD, scaled_add
x, y = torch.randn(2, 5, 7)
torch.testing.assert_close(scaled_add(x, y, 2.0), y + 2 * x)
torch.library.opcheck(scaled_add, (x, y, 2.0))
print(SCALED_ADD.choose(x.device))
"""


@pytest.mark.parametrize(
    "change, chosen",
    [
        (("", ""), "fused"),
        (("alpha=alpha", "alpha=1.1 * alpha"), "torch; not fused: its self-test of scaled_add is off by"),
    ],
    ids=["as written", "a wrong backend"],
)
def test_an_operator_and_a_backend_are_added(tmp_path, change, chosen):
    assert len(FILES) == 5 and len(ROWS) == 1
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace(*change) if path.name == "fused.py" else text)
    table = tmp_path / "kernels" / "backends.py"
    text = table.read_text()
    assert text.count("    REFERENCE,\n") == 1
    table.write_text(text.replace("    REFERENCE,\n", f"{ROWS[0]}    REFERENCE,\n"))
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(chosen)

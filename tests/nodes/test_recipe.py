"""The recipe "Add a node" in CONTRIBUTING.md works as written, in a copy of the pack."""

import json
import re
import shutil
import subprocess
import sys

from td_pack.tests.support.server import ROOT

RECIPE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a node")[2]
RECIPE = RECIPE.partition("\n## Add a workflow")[0]
FILES = re.findall(r"^```\w+\n(?:# |<!-- )(nodes/\S+)(?: -->)?\n(.*?)^```", RECIPE, re.MULTILINE | re.DOTALL)
(BLOCK,) = re.findall(r"^```text\n(.*?)^```", RECIPE, re.MULTILINE | re.DOTALL)
CHINESE = {
    "display_name": "TurboDiffusion 计数",
    "description": "统计视频的帧数。",
    "inputs": {"images": {"name": "图像", "tooltip": "视频的各帧。"}},
    "outputs": {"0": {"name": "帧数", "tooltip": "帧的数量。"}},
}


def insert(path, before: str, text: str) -> None:
    old = path.read_text(encoding="utf-8")
    assert old.count(before) == 1
    path.write_text(old.replace(before, text + before), encoding="utf-8")


def test_a_node_is_added(tmp_path):
    copy = tmp_path / "pack"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "golden", "weights", "bench"))
    assert len(FILES) == 3
    for name, text in FILES:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text(text, encoding="utf-8")
    for picture in ("node.webp", "node-zh.webp"):
        docs = copy / "nodes" / "web" / "docs"
        shutil.copy(docs / "TurboDiffusionCompare" / picture, docs / "TurboDiffusionCount")
    insert(copy / "nodes" / "__init__.py", "from .decode import", "from .count import TurboDiffusionCount\n")
    insert(copy / "nodes" / "__init__.py", "            TurboDiffusionConvert,\n", "            TurboDiffusionCount,\n")
    insert(copy / "tests" / "nodes" / "test_contract.py", '"""\nBLOCKS', BLOCK)
    path = copy / "locales" / "zh" / "nodeDefs.json"
    texts = json.loads(path.read_text(encoding="utf-8")) | {"TurboDiffusionCount": CHINESE}
    path.write_text(json.dumps(texts), encoding="utf-8")

    tests = ["tests/nodes/test_contract.py", "tests/nodes/test_locales.py", "-k", "Count or contract or translation"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not server", *tests]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""What holds for the whole pack: who imports whom, and what an import costs."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from td_pack.tests.support.fresh import ROOT, fresh

SHIPPED = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if not path.relative_to(ROOT).parts[0].startswith(("tests", "docs", ".", "__pycache__"))
)
COMMAND_LINE = ("cli.py", "dev.py", "install.py")  # talk to a person, and are no part of the running pack
SOURCES = [path for path in SHIPPED if str(path) not in COMMAND_LINE]
TOP_LEVEL = {"nodes", "turbo_core", "kernels", "tests"}


def layer(path: Path) -> str:
    """The row of ALLOWED that a file belongs to."""
    parts = path.with_suffix("").parts
    if parts[0] == "kernels" and parts[-1] == "comfy_kitchen":
        return "kernels/comfy_kitchen"
    return next((row for row in ALLOWED if "/" in row and parts[:2] == tuple(row.split("/"))), parts[0])


# layer -> what it may import of the pack, which other modules it may not
HOST = {"comfy", "comfy_api", "comfy_aimdo", "comfy_extras", "comfy_execution", "comfy_kitchen", "execution", "server"}
ALLOWED = {
    "__init__": ({"nodes", "turbo_core"}, HOST | {"folder_paths", "torch", "triton"}),
    "nodes": ({"nodes", "turbo_core", "turbo_core/host", "kernels"}, {"triton"}),
    "turbo_core/host": ({"turbo_core", "turbo_core/host", "kernels"}, {"folder_paths", "comfy_api", "triton"}),
    "turbo_core": ({"turbo_core", "kernels"}, HOST | {"folder_paths", "triton"}),
    "kernels": ({"kernels"}, HOST | {"folder_paths"}),
    "kernels/comfy_kitchen": ({"kernels"}, HOST - {"comfy_kitchen"} | {"folder_paths", "triton"}),
}


def relative_imports(path: Path) -> Iterator[tuple[Path, str]]:
    """(module, name) of each relative import of a file, at any depth in it; the module as a path from the root."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            yield from ((module, name.name) for name in node.names)


def other_imports(path: Path) -> set[str]:
    """The top-level names of the other modules that a file imports."""
    nodes = list(ast.walk(ast.parse((ROOT / path).read_text())))
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_down_only(path):
    inside, outside = {layer(module / name) for module, name in relative_imports(path)}, other_imports(path)
    below, refused = ALLOWED[layer(path)]
    assert inside <= below
    assert not outside & refused
    assert not outside & TOP_LEVEL, "the pack's own modules are imported relatively: `nodes` is ComfyUI's"
    if layer(path) == "kernels":
        named = {"einops"} if "reference" in path.with_suffix("").parts else set()
        assert outside <= {"torch", "triton", *named, *sys.stdlib_module_names}


def test_kernels_import_each_other_in_one_direction():
    """No import circle, and no backend that computes with the definition it is judged by."""
    files = {path.with_suffix("") for path in SOURCES if path.parts[0] == "kernels"}
    graph = {file: set() for file in files}
    for file in files:
        for module, name in relative_imports(file.with_suffix(".py")):
            named = (module / name, module / name / "__init__", module, module / "__init__")
            graph[file].add(next(each for each in named if each in files))
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
    backends = [used for file, used in graph.items() if "triton" in file.parts]
    assert not [each for used in backends for each in used if "reference" in each.parts]


def test_every_layer_was_seen():
    assert {layer(path) for path in SOURCES} == set(ALLOWED)


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_sources_are_short_and_ascii(path):
    text = (ROOT / path).read_bytes()
    assert text.isascii()
    assert len(text.splitlines()) <= 300


def test_text_files_are_utf_8():
    """Windows reads and writes them in the user's code page where no encoding is given."""
    nodes = [node for path in SHIPPED for node in ast.walk(ast.parse((ROOT / path).read_text()))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    text = [call for call in calls if call.func.attr in ("read_text", "write_text")]
    assert len(text) > 10 and all("encoding" in {keyword.arg for keyword in call.keywords} for call in text)


def test_contributing_names_only_what_is_there():
    """A path of the pack in its text, but for those of an example and of placeholders in capitals."""
    text = re.sub(r"^```.*?^```", "", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M | re.S)
    named = re.findall(r"(?:^|[` ])((?:tests|turbo_core|kernels|nodes|locales|workflows)/[\w./*-]*)", text, re.M)
    assert len(named) > 40
    missing = {name for name in named if not re.search(r"[A-Z]{3}", name) and not list(ROOT.glob(name.rstrip("./")))}
    assert not missing


def test_commit_subjects_are_short():
    """At most 72 characters since the commit that the rule came after."""
    command = ["git", "log", "--no-merges", "--format=%s", "9462281..HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True) if shutil.which("git") else None
    if done is None or done.returncode:
        pytest.skip("no git here, or not the whole history")
    assert not [subject for subject in done.stdout.splitlines() if len(subject) > 72]


def test_nothing_is_installed():
    """ComfyUI brings all that the pack imports; listing torch or triton could replace the user's own build."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    listed = re.search(r"^dependencies = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert ast.literal_eval(listed[1]) == [line for line in lines if line] == []


def test_importing_the_pack_is_free(tmp_path):
    seconds, *modules = fresh(
        "began = time.process_time(); load_pack(); print(time.process_time() - began, *sys.modules)", tmp_path
    ).split()
    assert "td_pack" in modules
    assert not [
        name for name in modules if name.split(".")[0] in ("torch", "triton", "comfy") or name.startswith("td_pack.")
    ]
    assert float(seconds) < 0.3  # of this process's own CPU time: measured 2 ms, and torch alone takes a second


def test_core_and_kernels_import_without_triton_and_comfyui(tmp_path):
    modules = [".".join(("td_pack", *path.with_suffix("").parts)) for path in SOURCES if layer(path) == "turbo_core"]
    modules = [name.removesuffix(".__init__") for name in modules]
    out = fresh(
        f"""
refused = {sorted(HOST | {"triton", "folder_paths", "nodes"})!r}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
load_pack()
for name in {["td_pack.kernels", *modules]!r}:
    importlib.import_module(name)
print(*(name for name in sys.modules if name.startswith("td_pack.")))
""",
        tmp_path,
    )
    assert {"td_pack.kernels", *modules} <= set(out.split())


def test_what_differs_between_hosts_is_in_one_file():
    """Names that another ComfyUI may lack stand in turbo_core/host/features.py alone."""
    names = (
        "comfy_force_cast_weights",
        '"_v"',
        "cast_bias_weight",
        "_comfy_model_dtype",
        "add_on_prompt_handler",
        'node_replacement"',
        'NodeReplace"',
    )
    found = {path for path in SOURCES for name in names if name in (ROOT / path).read_text()}
    assert found == {Path("turbo_core/host/features.py")}


def entered(host: Path) -> list[str]:
    """What the pack's entry says in that ComfyUI, and the modules of nodes that it has imported."""
    return fresh(
        f"""
import asyncio
sys.path.insert(0, {str(host)!r})
try:
    asyncio.run(load_pack().comfy_entrypoint())
except ImportError as error:
    print(error)
print([name for name in sys.modules if name.startswith("td_pack.nodes")])
""",
        host,
    ).splitlines()


def test_a_comfyui_without_a_part_that_is_imported_is_told_so(tmp_path):
    (tmp_path / "comfyui_version.py").write_text("__version__ = '0.99.0'")
    (tmp_path / "comfy_api").mkdir()
    (tmp_path / "comfy_api" / "latest.py").write_text("io = None")
    said = entered(tmp_path)[0]
    assert said.startswith("TurboDiffusion does not fit this ComfyUI (0.99.0): cannot import name 'ComfyExtension'")
    assert "Update the pack" in said


@pytest.mark.parametrize("version", ["0.29.3", "0.3.77", None])
def test_a_comfyui_that_is_too_old_is_told_so(version, tmp_path):
    (tmp_path / "comfyui_version.py").write_text(f"__version__ = {version!r}" if version else "raise ImportError")
    assert entered(tmp_path) == [
        f"TurboDiffusion: this ComfyUI ({version or '0'}) is too old, 0.30.0 or newer is needed; update ComfyUI and "
        "start it again.",
        "[]",
    ]

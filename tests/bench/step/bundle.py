"""What `bench step` needs of ComfyUI on a machine without a network: its source as an archive, and the packages that
the Python there must have."""

import importlib.metadata
import re
import tarfile
from pathlib import Path

LIMIT = 25e6  # bytes
# Not imported by what is measured: the page, docs, tests, and the tokenizers of other models, which are most of it.
_LEFT_OUT = ("tests", "tests-unit", "blueprints", "script_examples", "custom_nodes", "models", "input", "output")
_KEPT = (".py", ".json", ".ini", ".mako")
_LARGEST = 200e3  # bytes of a file that is no Python: vocabularies are larger
_UNUSED = ("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs", "simpleeval")
_OPTIONAL = "#non essential"  # the heading in ComfyUI's requirements.txt


def write(path: Path, comfyui: Path) -> Path:
    """A .tar.gz archive of a ComfyUI's source as the folder `ComfyUI`. Raises ValueError if it is over LIMIT."""
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(comfyui.rglob("*")):
            place = file.relative_to(comfyui)
            if place.parts[0] in _LEFT_OUT or "__pycache__" in place.parts or not file.is_file():
                continue
            kept = file.suffix == ".py" or (file.suffix in _KEPT and file.stat().st_size < _LARGEST)
            if kept or place.name == "requirements.txt":
                archive.add(file, Path("ComfyUI") / place)
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{path} has {path.stat().st_size / 1e6:.0f} MB, and at most {LIMIT / 1e6:.0f} MB travel.")
    return path


def missing_packages(comfyui: Path) -> list[str]:
    """The packages of ComfyUI's requirements.txt that this Python lacks and the benchmark imports, as pip takes
    them."""
    required = (comfyui / "requirements.txt").read_text(encoding="utf-8").split(_OPTIONAL)[0]
    missing = []
    for line in filter(None, map(str.strip, required.splitlines())):
        name = re.match(r"[\w.-]*", line)[0]
        if not name or name in _UNUSED:
            continue
        try:
            importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(line)
    return missing

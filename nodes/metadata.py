"""What saved files say of the pack that made them: ComfyUI stores the workflow and the prompt, with seeds and file names, in each."""

import re
from pathlib import Path

from ..turbo_core.host.features import before_each_prompt

KEY = "turbodiffusion"
_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def pack_version() -> str:
    """The version in pyproject.toml."""
    found = re.search(r'^version = "(.+)"', _PROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "unknown"


def with_version(request: dict, version: str) -> dict:
    """A request of POST /prompt that, if it has a node of ours, puts the version beside the workflow in the files it saves."""
    prompt = request.get("prompt")
    kinds = (
        [node.get("class_type") for node in prompt.values() if isinstance(node, dict)]
        if isinstance(prompt, dict)
        else []
    )
    if any(str(kind).startswith("TurboDiffusion") for kind in kinds):
        extra = request.setdefault("extra_data", {})
        stored = extra.setdefault("extra_pnginfo", {}) if isinstance(extra, dict) else None
        if isinstance(stored, dict):
            stored[KEY] = {"version": version}
    return request


def register() -> None:
    """Has ComfyUI ask `with_version` of every prompt, where it can."""
    version = pack_version()
    before_each_prompt(lambda request: with_version(request, version))

"""The version of the pack in the metadata of saved files, beside the workflow and the prompt that ComfyUI stores
there."""

import re
from pathlib import Path
from typing import Any

from ..turbo_core.host.features import before_each_prompt, nodes_of

KEY = "turbodiffusion"
_PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def pack_version() -> str:
    """The version in pyproject.toml."""
    found = re.search(r'^version = "(.+)"', _PROJECT.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else "unknown"


def with_version(request: dict[str, Any], version: str) -> dict[str, Any]:
    """Adds the version to the metadata that a request of POST /prompt saves, if its prompt has a node of this pack."""
    if any(node["class_type"].startswith("TurboDiffusion") for node in nodes_of(request)):
        extra = request.setdefault("extra_data", {})
        stored = extra.setdefault("extra_pnginfo", {}) if isinstance(extra, dict) else None
        if isinstance(stored, dict):
            stored[KEY] = {"version": version}
    return request


def register() -> None:
    """Applies `with_version` to every prompt, where the host has a handler for that."""
    version = pack_version()
    before_each_prompt(lambda request: with_version(request, version))

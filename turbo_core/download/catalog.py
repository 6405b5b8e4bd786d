"""Which files a model needs, as the shipped templates name them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import TurboError

PACK = Path(__file__).resolve().parents[2]
# The name of a model on the command line and in README: the template that runs it.
TEMPLATES = {
    "T2V-1.3B": "Turbo Wan 1.3B fast video from text",
    "T2V-1.3B-draft": "Turbo Wan 1.3B fast video draft from text",
    "T2V-1.3B-short-prompt": "Turbo Wan 1.3B fast video from a short prompt",
    "T2V-14B": "Turbo Wan 14B fast video from text",
    "I2V-A14B": "Turbo Wan A14B fast video from an image",
    "LingBot-World": "LingBot World (Wan 2.2) camera move through an image",
}
INT8 = "-quant.pth"


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository, and where ComfyUI expects it."""

    repo: str
    revision: str
    path: str  # in the repository
    folder: str  # ComfyUI's name of the folder, diffusion_models for example
    name: str  # in that folder, with a subfolder where the template has one


def files_of(model: str, bf16: bool = False) -> list[HubFile]:
    """The files that the template of a model names, each once; with `bf16` the bf16 files instead of the int8 ones.
    Raises TurboError for a model that has only one form."""
    text = (PACK / "workflows" / f"{TEMPLATES[model]}.json").read_text(encoding="utf-8")
    files = list(dict.fromkeys(_files_in(json.loads(text))))
    if not bf16:
        return files
    if not any(file.path.endswith(INT8) for file in files):
        raise TurboError(f"{model} has no bf16 files: leave --bf16 out.")
    return [_as_bf16(file) for file in files]


def _files_in(workflow: dict[str, Any]) -> list[HubFile]:
    listed = [model for node in workflow["nodes"] for model in node["properties"].get("models", ())]
    return [_parse(model["url"], model["directory"], model["name"]) for model in listed]


def _parse(url: str, folder: str, name: str) -> HubFile:
    """The file at https://huggingface.co/OWNER/NAME/resolve/REVISION/PATH."""
    owner, repo, _, revision, *path = unquote(urlsplit(url).path).strip("/").split("/")
    return HubFile(f"{owner}/{repo}", revision, "/".join(path), folder, name)


def _as_bf16(file: HubFile) -> HubFile:
    if not file.path.endswith(INT8):
        return file
    return replace(file, path=_without_int8(file.path), name=_without_int8(file.name))


def _without_int8(name: str) -> str:
    return f"{name.removesuffix(INT8)}.pth"

"""Where ComfyUI looks for model files: its own folders and those of extra_model_paths.yaml."""

import os
from pathlib import Path
from typing import Any

from ..errors import TurboError

# ComfyUI's own folders under models/, the one for new files first, and older names of a folder in the configuration.
OWN = {
    "diffusion_models": ("diffusion_models", "unet"),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
    "vae_approx": ("vae_approx",),
}
OLDER_NAMES = {"unet": "diffusion_models", "clip": "text_encoders"}
CONFIGURATION = "extra_model_paths.yaml"


class Folders:
    """The folders of each kind, the one for new files first."""

    def __init__(self, models: Path, configuration: Path | None = None):
        """`models` is a models folder, `configuration` an extra_model_paths.yaml. Raises TurboError if it cannot be
        read."""
        self._folders = {kind: [models / name for name in names] for kind, names in OWN.items()}
        for kind, folder, first in _configured(configuration) if configuration else ():
            folders = self._folders.setdefault(kind, [])
            if folder not in folders:
                folders.insert(0 if first else len(folders), folder)

    def find(self, kind: str, name: str) -> Path | None:
        """The file of that name, in the first folder that has it."""
        return next((folder / name for folder in self._folders[kind] if (folder / name).is_file()), None)

    def new(self, kind: str, name: str) -> Path:
        """Where a new file goes."""
        return self._folders[kind][0] / name


def _configured(path: Path) -> list[tuple[str, Path, bool]]:
    """(kind, folder, whether new files go there) as ComfyUI reads the file."""
    try:
        import yaml
    except ImportError as error:
        raise TurboError(
            f"{path} cannot be read without the package pyyaml: run this with ComfyUI's Python, or give --models."
        ) from error
    try:
        sections = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return [found for section in sections.values() if section for found in _section(path.parent, section)]
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise TurboError(
            f"{path} cannot be read ({type(error).__name__}: {error}): correct it, or give --models."
        ) from error


def _section(beside: Path, section: dict[str, Any]) -> list[tuple[str, Path, bool]]:
    base = Path(beside, os.path.expandvars(os.path.expanduser(section.get("base_path", ""))))
    first = bool(section.get("is_default", False))
    return [
        (OLDER_NAMES.get(kind, kind), Path(os.path.normpath(base / line)), first)
        for kind, lines in section.items()
        if kind not in ("base_path", "is_default")
        for line in lines.split("\n")
        if line
    ]

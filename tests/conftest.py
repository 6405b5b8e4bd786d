"""Makes the pack importable as `td_pack` and ComfyUI's own modules importable beside it."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _load_pack() -> None:
    """Imports the pack the way ComfyUI does (by path); the root itself must not be on sys.path, where `nodes/`
    would shadow ComfyUI's nodes.py."""
    sys.path[:] = [p for p in sys.path if Path(p or os.curdir).resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "td_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["td_pack"] = module
    spec.loader.exec_module(module)


def _load_host() -> None:
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        raise RuntimeError("COMFYUI_PATH is not set: run the tests with `python dev.py test`.")
    sys.path.insert(0, comfyui)
    # The command line is parsed when comfy.cli_args is imported, and pytest's is not ComfyUI's.
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        from comfy.cli_args import args
    finally:
        sys.argv = argv
    import torch

    args.cpu = not torch.cuda.is_available()


_load_pack()
_load_host()

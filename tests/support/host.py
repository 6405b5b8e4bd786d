"""ComfyUI's modules in this process, beside the pack."""

import os
import sys


def comfyui_path() -> str:
    """The ComfyUI folder that dev.py chose."""
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        raise RuntimeError("COMFYUI_PATH is not set: run the tests with `python dev.py test`.")
    return path


def load_host() -> None:
    """Makes ComfyUI importable, on the CPU where there is no GPU."""
    sys.path.insert(0, comfyui_path())
    # The command line is parsed when comfy.cli_args is imported, and ours is not ComfyUI's.
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        from comfy.cli_args import args
    finally:
        sys.argv = argv
    import torch

    args.cpu = not torch.cuda.is_available()

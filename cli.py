"""One command for users: `python cli.py download`, `python cli.py convert`, `python cli.py batch`.

Run with the Python that ComfyUI runs in; it makes no environment and installs nothing.
"""

import difflib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

if sys.version_info < (3, 10):  # noqa: UP036 - an older Python may run this file and would fail on what follows
    sys.exit("cli.py: Python 3.10 or newer is needed: run it with the Python that ComfyUI runs in.")

ROOT = Path(__file__).resolve().parent

# Command: the module whose main(arguments) runs it, and what it does.
COMMANDS = {
    "download": ("turbo_core.download.cli", "get the files of a model from Hugging Face into ComfyUI's folders"),
    "convert": ("turbo_core.convert.cli", "write a checkpoint anew: int8, fp8, bf16, a merged LoRA or delta"),
    "batch": ("turbo_core.batch.cli", "many videos: a table of jobs over ComfyUI servers or a Ray cluster, resumable"),
}
EXAMPLES = """\
examples:
  python cli.py download T2V-1.3B
  python cli.py convert SOURCE.pth TARGET.safetensors
  python cli.py batch jobs.csv --workflow workflows/api/TurboWan2.1-T2V-1.3B-480P.json --out results

Each command has its own --help.
"""


def load_pack() -> ModuleType:
    """Imports this folder as the package `td_pack` by its path, as ComfyUI does; needs neither ComfyUI nor torch.

    Removes the folder from sys.path, where its `nodes/` would shadow ComfyUI's nodes.py.
    """
    sys.path[:] = [p for p in sys.path if Path(p or os.curdir).resolve() != ROOT]
    spec = importlib.util.spec_from_file_location(
        "td_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader  # None only for a file whose suffix no loader handles
    module = importlib.util.module_from_spec(spec)
    sys.modules["td_pack"] = module
    spec.loader.exec_module(module)
    return module


def usage(program: str, commands: dict[str, tuple[str, str]]) -> str:
    """The text that lists the commands."""
    lines = "\n".join(f"  {name:8}  {what}" for name, (_, what) in commands.items())
    return f"usage: python {program} COMMAND ...\n\ncommands:\n{lines}\n"


def unknown(program: str, name: str, commands: dict[str, tuple[str, str]]) -> str:
    """The message for an unknown command; suggests the one with the nearest name."""
    near = difflib.get_close_matches(name, commands, n=1)
    instead = f"did you mean {near[0]}?" if near else f"there are {', '.join(commands)}."
    return f"{program}: there is no command {name!r}; {instead}"


def main(argv: list[str]) -> int:
    """Runs a command and returns its exit code: 2 for an unknown command, or one whose packages are missing."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help", "help"):
        print(f"{usage('cli.py', COMMANDS)}\n{EXAMPLES}", end="")
        return 0
    if name not in COMMANDS:
        print(unknown("cli.py", name, COMMANDS), file=sys.stderr)
        return 2
    if "td_pack" not in sys.modules:  # dev.py has imported it
        load_pack()
    from td_pack.turbo_core import environment

    comfyui = environment.find_comfyui(ROOT)
    if comfyui:
        os.environ.setdefault("COMFYUI_PATH", str(comfyui))
    try:
        module = importlib.import_module(f"td_pack.{COMMANDS[name][0]}")
    except ModuleNotFoundError as error:
        print(
            f"cli.py: {name} needs the package {error.name}, which this Python ({sys.executable}) lacks: run cli.py "
            "with the Python that ComfyUI runs in.",
            file=sys.stderr,
        )
        return 2
    return module.main(rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

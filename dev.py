"""One command for people: `python dev.py test`, `python dev.py demo`, `python dev.py convert`, `python dev.py batch`.

Run with any Python >= 3.10: it makes an environment and fetches ComfyUI once, in a cache, then runs the command there.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts this may have an older one, which fails on what follows
    sys.exit("dev.py: Python 3.10 or newer is needed.")

ROOT = Path(__file__).resolve().parent

# Command: the module whose main(arguments) runs it inside the environment, and what it does.
COMMANDS = {
    "test": ("tests.support.check", "lint, then every test (further arguments go to pytest)"),
    "bench": ("tests.bench", "measure: python dev.py bench for the list"),
    "demo": ("tests.tiny.demo", "queue the shipped workflows on a live server and keep the videos"),
    "tiny": ("tests.tiny.command", "train the toy models of the tests and the demo again, or measure them"),
    "locales": ("tests.support.locales", "add the texts of new nodes and inputs to the translations, to be translated"),
    "convert": ("turbo_core.convert.cli", "write a checkpoint anew: int8, fp8, bf16, a merged LoRA or delta"),
    "batch": ("turbo_core.batch.cli", "many videos: a table of jobs over ComfyUI servers or a Ray cluster, resumable"),
}


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


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own options, wherever they stand, and the rest, which is the command's."""
    commands = "\n".join(f"  {name:8} {what}" for name, (_, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="dev.py",
        add_help=False,
        allow_abbrev=False,
        epilog=f"commands:\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", metavar="command")
    parser.add_argument(
        "--comfyui",
        metavar="DIR",
        default=os.environ.get("COMFYUI_PATH"),
        help="a ComfyUI folder to use (default: COMFYUI_PATH, else one is downloaded)",
    )
    parser.add_argument(
        "--here", action="store_true", help="use the Python running this as it is, instead of making an environment"
    )
    parser.add_argument(
        "--newest", action="store_true", help="with the newest comfy-kitchen and comfy-aimdo, whatever ComfyUI pins"
    )
    options, rest = parser.parse_known_args(argv)
    if options.command not in COMMANDS:
        parser.print_help(sys.stdout if options.command is None else sys.stderr)
        raise SystemExit(0 if options.command is None else 2)
    return options, rest


def run_installed(options: argparse.Namespace, rest: list[str]) -> int:
    """A copy from the registry has no tests and makes no environment: it runs in the Python that starts it,
    ComfyUI's."""
    module = COMMANDS[options.command][0]
    if module.startswith("tests."):
        print(
            f"dev.py: {options.command} needs the whole repository; this copy of the pack has no tests.",
            file=sys.stderr,
        )
        return 2
    os.environ.setdefault("COMFYUI_PATH", options.comfyui or str(ROOT.parents[1]))
    return importlib.import_module(f"td_pack.{module}").main(rest)


def main(argv: list[str]) -> int:
    """Runs a command in its environment and returns the exit code: 2 where the environment cannot be made."""
    options, rest = parse(argv)
    load_pack()
    if not (ROOT / "tests").is_dir():
        return run_installed(options, rest)
    from td_pack.tests import bench
    from td_pack.tests.support import environment

    if options.command == "bench" and rest[:1] and rest[0] in bench.STANDALONE:
        return bench.main(rest)
    try:
        comfyui = environment.find_comfyui(options.comfyui)
        python = Path(sys.executable) if options.here else environment.ensure_python(comfyui, options.newest)
    except (environment.SetupError, OSError) as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 2
    os.environ.update(COMFYUI_PATH=str(comfyui), HF_HUB_OFFLINE="1", DO_NOT_TRACK="1")
    if not environment.is_running(python):
        return environment.become(str(python), str(ROOT / "dev.py"), *argv)
    module = importlib.import_module(f"td_pack.{COMMANDS[options.command][0]}")
    return module.main(rest)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)

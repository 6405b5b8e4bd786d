"""One command for developers: `python dev.py test`, `python dev.py demo`, `python dev.py bench`.

Run with any Python >= 3.10: it makes an environment and fetches ComfyUI once, in a cache, then runs the command there.
"""

import argparse
import importlib
import os
import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - an older Python may run this file and would fail on what follows
    sys.exit("dev.py: Python 3.10 or newer is needed.")

ROOT = Path(__file__).resolve().parent

# Command: the module whose main(arguments) runs it inside the environment, and what it does.
COMMANDS = {
    "test": ("tests.support.check", "lint, then every test (further arguments go to pytest)"),
    "bench": ("tests.bench", "measure: python dev.py bench for the list"),
    "demo": ("tests.tiny.demo", "queue the shipped workflows on a live server and keep the videos"),
    "tiny": ("tests.tiny.command", "train the toy models of the tests and the demo again, or measure them"),
    "locales": ("tests.support.locales", "add the texts of new nodes and inputs to the translations, to be translated"),
    "convert": ("turbo_core.convert.cli", "python cli.py convert, in this environment"),
    "batch": ("turbo_core.batch.cli", "python cli.py batch, in this environment"),
}


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """dev.py's own options, at any position, and the remaining arguments, which are the command's."""
    from cli import unknown, usage

    parser = argparse.ArgumentParser(
        prog="dev.py",
        add_help=False,
        allow_abbrev=False,
        usage=usage("dev.py", COMMANDS).removeprefix("usage: ").rstrip(),
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
    if options.command is None:
        parser.print_help()
        raise SystemExit(0)
    if options.command not in COMMANDS:
        print(unknown("dev.py", options.command, COMMANDS), file=sys.stderr)
        raise SystemExit(2)
    return options, rest


def run_installed(options: argparse.Namespace, rest: list[str]) -> int:
    """Runs a command of cli.py in a copy from the registry, which has no tests and makes no environment. Returns the
    exit code, 2 for any other command."""
    import cli

    if options.command in cli.COMMANDS:
        if options.comfyui:
            os.environ["COMFYUI_PATH"] = options.comfyui
        return cli.main([options.command, *rest])
    print(f"dev.py: {options.command} needs the whole repository; this copy of the pack has no tests.", file=sys.stderr)
    return 2


def main(argv: list[str]) -> int:
    """Runs a command in its environment and returns the exit code: 2 where the environment cannot be made."""
    from cli import load_pack

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

"""The pack's backends, the files of its Triton kernels and their ahead-of-time cases, for tests."""

import importlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Each operator has a module `triton` or a package of that name; a package's own file only names what is in the others.
TRITON_FILES = sorted({*ROOT.glob("kernels/*/triton/[!_]*.py"), *ROOT.glob("kernels/*/triton.py")})


def row(name: str):
    """The row of a backend in the table."""
    from td_pack.kernels.backends import BACKENDS

    return next(each for each in BACKENDS if each.name == name)


def module_name(path: Path) -> str:
    """A file's module inside the pack: "kernels.int8.triton.linear"."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def aot_cases() -> list:
    """The ahead-of-time cases of all operators."""
    files = sorted(ROOT.glob("tests/kernels/aot_cases/*.py"))
    return [case for path in files for case in importlib.import_module(f"td_pack.{module_name(path)}").CASES]

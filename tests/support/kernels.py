"""The pack's backends and the files of its Triton kernels, for tests."""

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

"""Defects put into compiled PTX, one at a time: what a compiler or kernel bug of each kind would look like."""

import re
from collections.abc import Callable
from typing import NamedTuple


class Mutation(NamedTuple):
    """The `number`-th place of a `kind` in a kernel."""

    kernel: str
    kind: str
    number: int


def _later(match: re.Match) -> str:
    return f"{match[1]}{int(match[2]) + 1};"


def _swapped(match: re.Match) -> str:
    return f"{match[1]}{match[3]}, {match[2]},"


def _shifted(match: re.Match) -> str:
    base, _, offset = match[2].partition("+")
    return f"{match[1]}[{base.strip()}+{int(offset or 0) + 16}]"


# kind: (pattern of a place, what stands there instead)
KINDS: dict[str, tuple[re.Pattern, Callable[[re.Match], str]]] = {
    "barrier removed": (re.compile(r"\bbar\.sync\s+0;"), lambda match: ""),
    "cp.async waited for one group less": (re.compile(r"(cp\.async\.wait_group\s+)(\d+);"), _later),
    "wgmma waited for one group less": (re.compile(r"(wgmma\.wait_group\.sync\.aligned\s+)(\d+);"), _later),
    "fence removed": (re.compile(r"\b(?:wgmma\.fence|fence\.proxy)[^;]*;"), lambda match: ""),
    "first two registers of A swapped": (
        re.compile(r"(mma\.sync[^{]*\{[^}]*\},\s*\{\s*)(%r\d+),\s*(%r\d+),"),
        _swapped,
    ),
    "shared load shifted": (re.compile(r"((?:ldmatrix|ld\.shared)[^\[]*)\[([^\]]*)\]"), _shifted),
    "shared store shifted": (re.compile(r"((?:stmatrix|st\.shared|cp\.async\.c[ag])[^\[]*)\[([^\]]*)\]"), _shifted),
    "global load shifted": (re.compile(r"(ld\.global[^\[]*)\[([^\]]*)\]"), _shifted),
    "global store shifted": (re.compile(r"(st\.global[^\[]*)\[([^\]]*)\]"), _shifted),
}


def places(kernel: str, ptx: str) -> list[Mutation]:
    """Every mutation of a kernel's text."""
    return [
        Mutation(kernel, kind, number)
        for kind, (pattern, _) in KINDS.items()
        for number in range(len(pattern.findall(ptx)))
    ]


def apply(mutation: Mutation, ptx: str) -> str:
    """The text with the defect."""
    pattern, replace = KINDS[mutation.kind]
    match = list(pattern.finditer(ptx))[mutation.number]
    return ptx[: match.start()] + replace(match) + ptx[match.end() :]

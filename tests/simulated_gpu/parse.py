"""Reads the PTX that Triton writes: one kernel, its parameters, and its instructions in basic blocks.

Source of the syntax: PTX ISA 8.7, chapters 4 (syntax), 5 (state spaces, types) and 11 (directives). Only the subset
that LLVM's NVPTX back end and Triton's inline assembly produce is read: one `.entry`, no functions, no local memory.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

_BYTES = {"pred": 0, "8": 1, "16": 2, "32": 4, "64": 8}
_INSTRUCTION = re.compile(r"^(?:@(!?)([%$\w]+)\s+)?([a-z][\w.:]*)\s*(.*);$", re.S)
_INTEGER = re.compile(r"-?(0[xX][0-9A-Fa-f]+|\d+)U?")


class Address(NamedTuple):
    """`[base + offset]`; base is a register, a symbol or an absolute address, offset in bytes."""

    base: "str | int"
    offset: int


class Bits(int):
    """The bit pattern of a floating-point immediate: 0f... (32 bits), 0d... (64 bits)."""


# A register or symbol, an immediate, an address, or a vector `{...}` of operands.
Operand = str | int | Address | list


@dataclass(frozen=True)
class Instruction:
    """One instruction. `line` is its text with the Python source position from `.loc`, for error messages."""

    opcode: str
    operands: list[Operand]
    predicate: str | None
    negated: bool
    line: str

    @property
    def parts(self) -> list[str]:
        """The opcode's dot-separated parts: ["ld", "global", "v4", "b32"]."""
        return self.opcode.split(".")


@dataclass
class Kernel:
    """A parsed `.entry`: `parameters` are byte sizes in order, `threads` the block size, `registers` the width in bytes
    of each declared register prefix (0: predicate), `labels` the index of the block a label stands before."""

    name: str
    parameters: list[int]
    threads: int
    blocks: list[list[Instruction]] = field(default_factory=lambda: [[]])
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, int] = field(default_factory=dict)

    def instructions(self):
        """All instructions in program order."""
        for block in self.blocks:
            yield from block


def split_operands(text: str) -> list[str]:
    """Splits at commas outside of braces and brackets."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c in "{[") - (c in "}]")
        if c == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += c
    return [*parts, current.strip()] if current.strip() else parts


def parse_operand(text: str) -> Operand:
    """One operand of an instruction."""
    if text.startswith("{"):
        return [parse_operand(part) for part in split_operands(text.strip("{} "))]
    if text.startswith("["):
        base, _, offset = text.strip("[] ").partition("+")
        return Address(parse_operand(base.strip()), int(offset.strip() or "0", 0))
    if text[:2] in ("0f", "0F", "0d", "0D"):
        return Bits(text[2:], 16)
    if _INTEGER.fullmatch(text):
        return int(text.rstrip("U"), 0)
    return text


def _is_local_label(line: str) -> bool:
    return line.endswith(":") and not line.startswith(".")


def parse(ptx: str) -> Kernel:
    """Reads PTX with one kernel. Raises ValueError for a line it cannot read, and for PTX without block size."""
    head = re.search(r"\.entry (\w+)\((.*?)\)(.*?)^\{", ptx, re.S | re.M)
    if head is None:
        raise ValueError("no .entry in this PTX")
    sizes = [int(bits) // 8 for bits in re.findall(r"\.param \.[a-z](\d+)", head[2])]
    threads = re.search(r"\.reqntid (\d+)", head[3])
    if threads is None:
        raise ValueError(f"{head[1]} declares no .reqntid")
    kernel = Kernel(head[1], sizes, int(threads[1]))
    where, depth = "", 1
    for raw in ptx[head.end() :].splitlines():
        line, _, comment = raw.partition("//")
        line = line.strip()
        depth += line.count("{") - line.count("}")
        if depth == 0:
            break
        if not line or line in ("{", "}"):  # inline assembly stands in braces of its own
            continue
        if line.startswith(".loc"):
            where = comment.strip() or line
        elif line.startswith(".reg"):
            kind, names = re.match(r"\.reg \.([a-z]+\d*)\s+(.*);", line.replace("\t", " ")).groups()
            width = _BYTES[kind.lstrip("bufs") or "pred"] if kind != "pred" else 0
            for name in names.split(","):
                kernel.registers[name.strip().partition("<")[0]] = width
        elif _is_local_label(line):
            if kernel.blocks[-1]:
                kernel.blocks.append([])
            kernel.labels[line[:-1]] = len(kernel.blocks) - 1
        elif not line.startswith("."):
            _append(kernel, line, where)
    return kernel


def _append(kernel: Kernel, line: str, where: str) -> None:
    """Adds the instruction of a line; a branch or return ends the basic block."""
    found = _INSTRUCTION.match(line)
    if not found:
        raise ValueError(f"cannot read {line!r}   [{where}]")
    negated, predicate, opcode, rest = found.groups()
    operands = [parse_operand(part) for part in split_operands(rest)]
    kernel.blocks[-1].append(Instruction(opcode, operands, predicate, bool(negated), f"{line}   [{where}]"))
    if opcode.split(".")[0] in ("bra", "ret", "exit"):
        kernel.blocks.append([])

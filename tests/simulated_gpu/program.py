"""Small PTX programs for the emulator's tests: what Triton's output looks like around the instructions under test."""

import re

import numpy as np

from .execute import Machine
from .memory import Allocation, GlobalMemory
from .parse import parse

_HEAD = """
.version 8.7
.target sm_90
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry program({parameters}
)
.reqntid {threads}
{{
\t.reg .pred %p<64>;
\t.reg .b16 %rs<256>;
\t.reg .b32 %r<512>;
\t.reg .b64 %rd<256>;
{loads}
\tmov.u32 %r0, %tid.x;
{body}
\tret;
}}
"""
PREFIX = {8: "%rs", 16: "%rs", 32: "%r", 64: "%rd"}


def text(body: str, pointers: int, threads: int = 32) -> str:
    """A kernel with pointer parameters in %rd0, %rd1, ..., the thread number in %r0, and the given instructions. A line
    `@file.py:7` gives the source position of what follows."""
    parameters = ",".join(f"\n\t.param .u64 .ptr .global .align 1 program_param_{n}" for n in range(pointers))
    loads = "\n".join(f"\tld.param.b64 %rd{n}, [program_param_{n}];" for n in range(pointers))
    body = re.sub(r"^\s*@(\S+\.py:\d+)$", r"\t.loc 1 1 0 // \1", body, flags=re.M)
    return _HEAD.format(parameters=parameters, threads=threads, loads=loads, body=body)


def launch(body: str, *arrays: np.ndarray, threads: int = 32, blocks: int = 1, shared: int = 0, written=None) -> None:
    """Runs the instructions; arrays are the global memory, changed in place. `written`: marks for the first array."""
    machine = Machine(parse(text(body, len(arrays), threads)), shared)
    marks = [written, *[None] * len(arrays)]
    memory = GlobalMemory([Allocation(a.ctypes.data, a.nbytes, f"array {n}", marks[n]) for n, a in enumerate(arrays)])
    machine.launch((blocks, 1, 1), [a.ctypes.data.to_bytes(8, "little") for a in arrays], memory)
    memory.close()


def evaluate(opcode: str, *operands, bits: int, immediates: str = "") -> np.ndarray:
    """An instruction on one element of each operand in every thread: unsigned arrays [n], bool for predicates. `bits`
    is the width of the result, 0 for a predicate (which comes as uint32 0 or 1). `immediates` follow the operands."""
    n = len(operands[0])
    padded = -(-n // 32) * 32
    arrays, lines, names = [], [], []
    for k, operand in enumerate(operands):
        predicate = operand.dtype == bool
        array = np.resize(operand.astype(np.uint32) if predicate else operand, padded)
        arrays.append(np.ascontiguousarray(array))
        size = 8 * array.itemsize
        register = f"{PREFIX[size]}{100 + k}"
        lines += [f"\tmad.wide.u32 %rd{20 + k}, %r0, {array.itemsize}, %rd{k};"]
        lines += [f"\tld.global.b{size} {register}, [%rd{20 + k}];"]
        if predicate:
            lines += [f"\tsetp.ne.b32 %p{10 + k}, {register}, 0;"]
            register = f"%p{10 + k}"
        names.append(register)
    out = np.zeros(padded, {0: np.uint32, 8: np.uint16, 16: np.uint16, 32: np.uint32, 64: np.uint64}[bits])
    target = "%p1" if bits == 0 else f"{PREFIX[bits]}200"
    lines += [f"\t{opcode} {', '.join([target, *names])}{immediates};"]
    if bits == 0:
        lines += ["\tselp.b32 %r200, 1, 0, %p1;"]
    k, size = len(arrays), 8 * out.itemsize
    lines += [f"\tmad.wide.u32 %rd40, %r0, {out.itemsize}, %rd{k};"]
    lines += [f"\tst.global.b{size} [%rd40], {PREFIX[size]}200;"]
    launch("\n".join(lines), *arrays, out, threads=padded)
    return out[:n]

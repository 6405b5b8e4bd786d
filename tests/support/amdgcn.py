"""Reads the assembly that LLVM writes for an AMD kernel: its instructions, its loops and what its registers spill.

A vector register that does not fit goes to scratch memory (`scratch_load`, `scratch_store` on gfx94x and gfx11 on), a
scalar one to the lanes of a vector register (`v_writelane`, `v_readlane`). The metadata counts both for the whole
kernel; the loop tells whether they cost anything.
"""

import re

from .sass import Instruction, find_loops, hottest_loop

_LABEL = re.compile(r"^([\w.$]+):")
_INSTRUCTION = re.compile(r"^\s+([a-z]\w+)\s*([^;]*)")
_MMA = re.compile(r"v_(?:s?mfmac?|s?wmmac?)_\w+")
_TARGET = re.compile(r"\.LBB\w+")
_ENDS = ("s_branch", "s_endpgm", "s_setpc_b64")
_SCRATCH = ("scratch_load", "scratch_store")
_LANES = ("v_writelane", "v_readlane")


def read_amdgcn(text: str) -> list[Instruction]:
    """The instructions of the one kernel in an assembly file, without the padding behind its end."""
    labels, found = {}, []
    for line in text.splitlines():
        if line.lstrip().startswith(".section") and found:
            break
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif instruction := _INSTRUCTION.match(line):
            found.append(instruction.groups())
    code = []
    for address, (opcode, operands) in enumerate(found):
        jump = _TARGET.search(operands) if opcode.startswith(("s_branch", "s_cbranch")) else None
        mma, goes_on = _MMA.match(opcode) is not None, opcode not in _ENDS
        code.append(Instruction(address, opcode, mma, labels[jump[0]] if jump else None, goes_on))
    return [instruction for instruction in code if instruction.opcode != "s_code_end"]


def read_metadata(text: str, name: str) -> int:
    """A number of the kernel's metadata, such as vgpr_count or sgpr_spill_count."""
    return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])


def amd_loop(code: list[Instruction]) -> list[Instruction]:
    """The hottest loop, as `sass.hottest_loop`, without waits and NOPs."""
    return [i for i in hottest_loop(code) if not i.opcode.startswith(("s_nop", "s_delay_alu", "s_wait"))]


def count_spills(code: list[Instruction], scalar_spills: int) -> int:
    """Spill instructions in any loop of the kernel, or in all of it if it has none. Reductions read lanes as well, so
    these count only where scalars spill at all (`scalar_spills`, of the metadata)."""
    repeated = {i.address: i for loop in find_loops(code) or [code] for i in loop}.values()
    lanes = sum(instruction.opcode.startswith(_LANES) for instruction in repeated) if scalar_spills else 0
    return sum(instruction.opcode.startswith(_SCRATCH) for instruction in repeated) + lanes

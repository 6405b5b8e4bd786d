"""Reads the disassembly of an NVIDIA kernel: its instructions; and finds the loops of this and of AMD's (amdgcn.py)."""

import re
from dataclasses import dataclass

import networkx  # torch brings it

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;?]*)")
_MMA = re.compile(r"(?:[HIQDO]|HG|IG|QG|UTC\w*)MMA\b")


@dataclass(frozen=True)
class Instruction:
    address: int  # of an AMD kernel its position
    opcode: str
    is_mma: bool
    jump: int | None = None  # the address; a call comes back, so it is none
    goes_on: bool = True  # to the instruction behind it


def read_sass(text: str) -> list[Instruction]:
    """The instructions, without the padding behind the end, which jumps to itself."""
    code = [_read(int(address, 16), *rest) for address, *rest in _LINE.findall(text)]
    return [instruction for instruction in code if instruction.jump != instruction.address]


def _read(address: int, predicate: str, opcode: str, operands: str) -> Instruction:
    jump, goes_on = None, True
    if opcode.startswith("BRA"):
        jump = int(re.findall(r"0x([0-9a-f]+)", operands)[-1], 16)
        goes_on = predicate != "" or opcode != "BRA"  # BRA.U and BRA.DIV take a condition as an operand
    elif opcode.startswith(("EXIT", "RET")):
        goes_on = predicate != ""
    return Instruction(address, opcode, _MMA.match(opcode) is not None, jump, goes_on)


def find_loops(code: list) -> list[list]:
    """The loops, outer ones before those inside them: what reaches itself, and what still does without the loop's
    entries.

    Addresses alone mislead: waits for a barrier are moved behind the end and jump back, and the head of a loop may
    stand in its middle."""
    by_address = {instruction.address: instruction for instruction in code}
    flow = networkx.DiGraph()
    flow.add_nodes_from(by_address)
    for instruction, following in zip(code, [*code[1:], None], strict=True):
        after = {instruction.jump, following.address if following and instruction.goes_on else None}
        flow.add_edges_from((instruction.address, x) for x in after if x in by_address)
    found, regions = [], [flow]
    while regions:
        for component in networkx.strongly_connected_components(region := regions.pop()):
            if len(component) > 1 or region.has_edge(*component, *component):
                found.append(component)
                entries = {x for _, x in networkx.edge_boundary(flow, flow.nodes - component, component)}
                regions.append(flow.subgraph(component - (entries or {min(component)})))
    return [[by_address[address] for address in sorted(component)] for component in found]


def hottest_loop(code: list) -> list:
    """The innermost loop with the most tensor-core instructions, or the longest loop if none has any, or all of it;
    NOPs do not count."""

    def count_mma(loop):
        return sum(instruction.is_mma for instruction in loop)

    loops = find_loops(code)
    multiplying = [loop for loop in loops if count_mma(loop)]
    innermost = [loop for loop in multiplying if not any(set(other) < set(loop) for other in multiplying)]
    hottest = max(innermost or loops, key=lambda loop: (count_mma(loop), len(loop)), default=code)
    return [instruction for instruction in hottest if instruction.opcode != "NOP"]

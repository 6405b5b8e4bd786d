"""Reads the disassembly of an NVIDIA kernel: its instructions and its loops."""

import re
from collections import defaultdict
from dataclasses import dataclass

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;?]*)")
_MMA = re.compile(r"(?:[HIQDO]|HG|IG|QG|UTC\w*)MMA\b")


@dataclass(frozen=True)
class Instruction:
    address: int
    predicated: bool
    opcode: str
    operands: str

    def is_mma(self) -> bool:
        return _MMA.match(self.opcode) is not None

    def successors(self, following: int | None) -> list[int]:
        """Addresses that may run next; a call comes back."""
        after = [] if following is None else [following]
        if self.opcode.startswith("BRA"):
            jump = int(re.findall(r"0x([0-9a-f]+)", self.operands)[-1], 16)
            conditional = self.predicated or self.opcode != "BRA"  # BRA.U and BRA.DIV take a condition as an operand
            return [jump, *after] if conditional else [jump]
        if self.opcode.startswith(("EXIT", "RET")) and not self.predicated:
            return []
        return after


def read_sass(text: str) -> list[Instruction]:
    """The instructions, without the padding behind the end, which jumps to itself."""
    code = [
        Instruction(int(address, 16), bool(predicate), opcode, operands)
        for address, predicate, opcode, operands in _LINE.findall(text)
    ]
    return [instruction for instruction in code if instruction.successors(None) != [instruction.address]]


def find_loops(code: list[Instruction]) -> list[list[Instruction]]:
    """The natural loops. Addresses alone mislead: waits for a barrier are moved behind the end and jump back."""
    by_address = {instruction.address: instruction for instruction in code}
    before = defaultdict(set)
    for instruction, following in zip(code, [*code[1:], None], strict=True):
        for address in instruction.successors(following and following.address):
            before[address].add(instruction.address)
    bodies = defaultdict(set)  # by the loop's head
    for head, tail in [(head, tail) for head, tails in before.items() for tail in tails if tail >= head]:
        body, open_ends = {head}, [tail]
        while open_ends:
            address = open_ends.pop()
            if address not in body:
                body.add(address)
                open_ends.extend(before[address])
        if code[0].address not in body:  # else the head can be bypassed: a jump back, not a loop
            bodies[head] |= body
    return [[by_address[address] for address in sorted(body)] for body in bodies.values()]


def hottest_loop(code: list[Instruction]) -> list[Instruction]:
    """The innermost loop with the most tensor-core instructions, or the longest loop if none has any, or all of it;
    NOPs do not count."""

    def count_mma(loop):
        return sum(instruction.is_mma() for instruction in loop)

    loops = find_loops(code)
    multiplying = [loop for loop in loops if count_mma(loop)]
    innermost = [loop for loop in multiplying if not any(set(other) < set(loop) for other in multiplying)]
    hottest = max(innermost or loops, key=lambda loop: (count_mma(loop), len(loop)), default=code)
    return [instruction for instruction in hottest if instruction.opcode != "NOP"]

"""Where a kernel's registers and immediates lie: slots in a list, one list for each batch of blocks that runs.

A slot holds an array with a value for each lane, or a numpy scalar where all lanes agree; values are unsigned integers
of the register's width, predicates are bools. Arrays in slots are never changed in place.
"""

import numpy as np

from .integers import UNSIGNED
from .parse import Bits, Kernel, Operand

SPECIAL = ("tid", "ntid", "ctaid", "nctaid")  # each with .x .y .z (PTX ISA 8.7, chapter 10)
LANE_IDS = ("%laneid", "%warpid")


class Slots:
    """Slots of one kernel. `template` are their values before the first instruction: immediates, and poison (all ones,
    false) in registers, so that arithmetic on a register nobody wrote shows as NaN or -1."""

    def __init__(self, kernel: Kernel):
        self._kernel = kernel
        self._index: dict[object, int] = {}
        self.template: list = []
        for name in [f"%{name}.{axis}" for name in SPECIAL for axis in "xyz"] + list(LANE_IDS):
            self._add(name, np.uint32(0))

    def _add(self, key, value) -> int:
        self._index[key] = len(self.template)
        self.template.append(value)
        return self._index[key]

    def bits(self, name: str) -> int:
        """The width of a register: 16, 32, 64, or 0 for a predicate. Raises KeyError for an undeclared one."""
        if name in self._index and name.startswith("%") and ("." in name or name in LANE_IDS):
            return 32
        declared = self._kernel.registers
        return 8 * (declared[name] if name in declared else declared[name.rstrip("0123456789")])

    def target(self, name: str) -> int | None:
        """The slot an instruction writes; None for the sink `_`."""
        return None if name == "_" else self._register(name)

    def _register(self, name: str) -> int:
        if name in self._index:
            return self._index[name]
        bits = self.bits(name)
        return self._add(name, UNSIGNED[bits](2**bits - 1) if bits else np.False_)

    def source(self, operand: Operand, bits: int) -> int:
        """The slot an instruction reads. Immediates become constants of `bits` bits (0: predicate)."""
        if isinstance(operand, str):
            # Triton's only symbol is its dynamic shared memory, which starts at 0 (the kernel has no static one).
            return self.source(0, bits) if operand == "global_smem" else self._register(operand)
        if not isinstance(operand, int):
            raise TypeError(f"{operand} is not a scalar operand")
        key = (int(operand), bits)
        if key in self._index:
            return self._index[key]
        if bits == 0:
            return self._add(key, np.bool_(operand))
        if isinstance(operand, Bits) and operand >> bits:
            raise ValueError(f"the immediate {operand:#x} does not fit {bits} bits")
        return self._add(key, UNSIGNED[bits](operand & (2**bits - 1)))

    def named(self, name: str) -> int:
        """The slot of a special register, for the machine to fill."""
        return self._index[name]

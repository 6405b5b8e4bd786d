"""What the emulator reports instead of computing on: the errors compute-sanitizer's tools find on a GPU, and gaps of
the emulator.

Every fault names the PTX instruction and the Python source line it was compiled from (from the `.loc` directives), and
the first thread and address where the check failed. The line is attached by `execute.Machine`, which knows the running
instruction.
"""


class Fault(Exception):
    """A compiled kernel broke a rule of the PTX memory or execution model.

    Attributes: `problem` (text), `thread` ("block 3 thread 17", or None), `address` (int, or None), `line` (PTX text
    and source position, set once the instruction is known)."""

    def __init__(self, problem: str, thread: str | None = None, address: int | None = None):
        super().__init__(problem)
        self.problem, self.thread, self.address, self.line = problem, thread, address, None

    def __str__(self) -> str:
        where = [] if self.thread is None else [self.thread]
        where += [] if self.address is None else [f"address {self.address:#x}"]
        text = f"{self.problem} ({', '.join(where)})" if where else self.problem
        return text if self.line is None else f"{text}\n    in {shortened(self.line)}"


def shortened(line: str) -> str:
    """A PTX line and its source position without the middle of a long list of registers."""
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-100:]}"


class OutOfBounds(Fault):
    """An access outside of every allocation, or past the block's shared memory."""


class Misaligned(Fault):
    """An address that is no multiple of the access size."""


class SharedRace(Fault):
    """Two warps touch one word of shared memory, at least one writes, and no barrier stands between."""


class ReadBeforeWait(Fault):
    """Memory or registers of a cp.async or wgmma in flight are used before the wait for its group."""


class DivergentBarrier(Fault):
    """A barrier or warp-wide instruction that not all of its threads reach together."""


class UninitializedRead(Fault):
    """Shared or global memory is read that nothing has written."""


class UnsupportedInstruction(Exception):
    """The emulator has no implementation of an opcode: the text names the opcode, the PTX line and the source line."""

"""Runs a parsed kernel over a grid, a batch of blocks at a time.

Each instruction becomes a step, a function of the batch, once; a launch runs the steps of a basic block in order and
then the block that comes first in the program among those its lanes wait at. Branches and returns are PTX ISA 8.7,
9.7.12.
"""

import contextlib

import numpy as np

from . import conversions, floating, integers, loads, tensor_cores, warps, wgmma
from .batch import WARP, Batch
from .faults import Fault, ReadBeforeWait, UnsupportedInstruction
from .memory import GlobalMemory
from .parse import Instruction, Kernel
from .registers import Slots

MAX_LANES = 4096  # of a batch: enough for numpy to be busy, few enough for the registers to stay in the cache


class EmulatorError(RuntimeError):
    """The emulator itself failed in an instruction; the text names it."""


class Machine:
    """A kernel ready to run. `shared` bytes of dynamic shared memory per block.

    Raises UnsupportedInstruction, which names opcode, PTX line and Python source line, for an instruction it does not
    know."""

    def __init__(self, kernel: Kernel, shared: int):
        self.kernel, self._shared = kernel, shared
        self._slots = Slots(kernel)
        watched = any(i.opcode.startswith("wgmma.") for i in kernel.instructions())
        self._blocks = [[self._decode(i, watched) for i in block] for block in kernel.blocks]
        self.executed = 0  # instructions of the last launch, counted once a batch
        self.hazards: set[str] = set()  # of the last launch: see shared.py

    def launch(
        self, grid: tuple[int, int, int], arguments: list[bytes], memory: GlobalMemory, max_lanes: int = MAX_LANES
    ):
        """Runs all blocks of the grid; arguments are the parameters' bytes, little-endian. Raises a `Fault` at the
        first error."""
        sizes = [len(a) for a in arguments]
        if sizes != self.kernel.parameters:
            raise ValueError(f"{self.kernel.name} takes parameters of {self.kernel.parameters} bytes, got {sizes}")
        self.executed, self.hazards = 0, set()
        together = max(1, max_lanes // self.kernel.threads)
        total = grid[0] * grid[1] * grid[2]
        with np.errstate(all="ignore"):
            for first in range(0, total, together):
                self._run(self._batch(grid, np.arange(first, min(first + together, total)), arguments, memory))

    def _batch(self, grid, blocks, arguments, memory) -> Batch:
        threads = self.kernel.threads
        b = Batch(list(self._slots.template), grid, blocks, threads, memory, self._shared)
        b.arguments = arguments
        lane = np.arange(b.lanes)
        special = {
            "%tid.x": (lane % threads).astype(np.uint32),
            "%laneid": (lane % WARP).astype(np.uint32),
            "%warpid": (lane % threads // WARP).astype(np.uint32),
            "%ntid.x": np.uint32(threads), "%ntid.y": np.uint32(1), "%ntid.z": np.uint32(1),
            "%ctaid.x": np.repeat(blocks % grid[0], threads).astype(np.uint32),
            "%ctaid.y": np.repeat(blocks // grid[0] % grid[1], threads).astype(np.uint32),
            "%ctaid.z": np.repeat(blocks // (grid[0] * grid[1]), threads).astype(np.uint32),
            **{f"%nctaid.{axis}": np.uint32(size) for axis, size in zip("xyz", grid, strict=True)},
        }  # fmt: skip
        for name, value in special.items():
            b.r[self._slots.named(name)] = value
        return b

    def _run(self, b: Batch) -> None:
        end = len(self._blocks)
        pc: int | np.ndarray = 0  # the next block of every lane, or of each
        while True:
            current = pc if isinstance(pc, int) else int(pc.min())
            if current >= end:
                break
            active = None if isinstance(pc, int) or (active := pc == current).all() else active
            b.mask, b.next, b.jump = active, current + 1, None
            self._run_block(b, current)
            if active is None and b.jump is None:
                pc = b.next
            else:
                after = b.next if b.jump is None else np.where(b.jump[0], b.jump[1], b.next)
                pc = np.where(True if active is None else active, after, pc)
        if b.copies is not None and b.copies.unfinished():
            raise ReadBeforeWait(f"{self.kernel.name} ends while a cp.async is in flight")

    def _run_block(self, b: Batch, number: int) -> None:
        steps = self._blocks[number]
        try:
            for index in range(len(steps)):
                steps[index](b)
        except Fault as fault:
            fault.line = fault.line or self.kernel.blocks[number][index].line
            raise
        except Exception as error:
            line = self.kernel.blocks[number][index].line
            raise EmulatorError(f"{type(error).__name__}: {error}\n    in {line}") from error
        self.executed += len(steps)
        self.hazards.update(b.shared.hazards)

    # --- decoding
    # -------------------------------------------------------------------------------------------------------

    def _decode(self, i: Instruction, watched: bool):
        step = None
        with contextlib.suppress(KeyError, IndexError):  # operands or modifiers that the decoder has no entry for
            predicate = None if i.predicate is None else self._slots.source(i.predicate, 0)
            step = self._find(i, (predicate, i.negated))
        if step is None:
            raise UnsupportedInstruction(f"the emulator does not know {i.opcode}: {i.line}")
        return wgmma.watch(step, i, self._slots) if watched else step

    def _find(self, i: Instruction, guard):
        for module in (integers, floating, conversions):
            if operation := module.find(i.opcode):
                return self._operation(i, guard, *operation)
        if i.parts[0] in ("bra", "ret", "exit"):
            target = self.kernel.labels[i.operands[0]] if i.parts[0] == "bra" else len(self.kernel.blocks)
            return _branch(target, guard)
        if i.parts[0] == "fence" and i.parts[1] != "proxy" or i.parts[0] == "membar":
            return lambda b: None  # blocks run one after the other, and lanes in lockstep
        for module in (loads, warps, tensor_cores, wgmma):
            if step := module.decode(i, self._slots, guard):
                return step
        return None

    def _operation(self, i: Instruction, guard, function, count: int, widths):
        """The step of an arithmetic instruction: `function` on the bits of `count` sources."""
        widths = widths if isinstance(widths, tuple) else (widths,) * count
        to = self._slots.target(i.operands[0])
        sources = [self._slots.source(x, bits) for x, bits in zip(i.operands[1:], widths, strict=True)]
        if guard[0] is not None:
            return lambda b: b.put(to, function(*[b.r[s] for s in sources]), b.active(*guard))
        x, *more = sources
        if count == 1:
            return lambda b: b.put(to, function(b.r[x]), b.mask)
        if count == 2:
            y = more[0]
            return lambda b: b.put(to, function(b.r[x], b.r[y]), b.mask)
        return lambda b: b.put(to, function(b.r[x], *[b.r[s] for s in more]), b.mask)


def _branch(target: int, guard):
    """bra and ret: lanes of the guard go to the block `target`, the others to the following one."""

    def step(b):
        taken = b.active(*guard)
        if taken is None or taken is b.mask:
            b.next = target
        elif taken.any():
            b.jump = (taken, target)

    return step

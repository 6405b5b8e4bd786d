"""Compiles Triton kernels for GPUs that are not here, and reads what came out: spills, the hottest loop.

Triton must not be in interpreter mode for this, so the compiling happens in worker processes: `Compiler` in the tests,
`serve` in the worker. Kernels stay in Triton's cache, in the cache folder of dev.py, so a second run only reads them.
"""

import os
import pickle
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from .amdgcn import amd_loop, count_spills, read_amdgcn, read_metadata
from .environment import cache_dir, lock, pip
from .sass import hottest_loop, read_sass

ROOT = Path(__file__).resolve().parents[2]
COMPILE_SECONDS = 240  # a compiler that takes longer hangs: some kernels do on RDNA


@dataclass(frozen=True)
class Target:
    backend: str
    arch: int | str
    warp_size: int
    shared_limit: int  # bytes of shared memory one block may have

    @property
    def capability(self) -> tuple[int, int]:
        """As torch gives it; of an AMD GPU its generation, (9, 0) for gfx942."""
        return divmod(self.arch, 10) if self.backend == "cuda" else (int(self.arch[3:-2]), 0)

    @property
    def chip(self):
        """As the launchers see it: a `kernels.launch.Chip`."""
        from ...kernels.launch import Chip

        return Chip(self.capability, self.backend == "hip")


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163 << 10),
    "sm_86": Target("cuda", 86, 32, 99 << 10),
    "sm_89": Target("cuda", 89, 32, 99 << 10),
    "sm_90": Target("cuda", 90, 32, 227 << 10),
    "sm_100": Target("cuda", 100, 32, 227 << 10),
    "sm_120": Target("cuda", 120, 32, 99 << 10),
    "gfx942": Target("hip", "gfx942", 64, 64 << 10),
    **{name: Target("hip", name, 32, 64 << 10) for name in ("gfx1100", "gfx1151", "gfx1201")},
}
NVIDIA = tuple(name for name in TARGETS if name.startswith("sm_"))
RDNA = ("gfx1100", "gfx1151", "gfx1201")
AMD = ("gfx942", *RDNA)


def loops(*instructions: int) -> dict[str, int | None]:
    """By target, as measured on NVIDIA's in order: instructions of the hottest loop (of the kernel, if it has none)."""
    return dict.fromkeys(TARGETS) | dict(zip(NVIDIA, instructions, strict=True))


def strides(names: str) -> tuple[str, ...]:
    """The arguments of a kernel for the strides of tensors [B, L, H, D]."""
    return tuple(f"{x}_{axis}" for x in names for axis in "blh")


def arguments(**kinds: str) -> dict[str, str]:
    """`kind="a b"` as {"a": kind, "b": kind}, a pointer's kind written p_bf16."""
    return {name: kind.replace("p_", "*") for kind, names in kinds.items() for name in names.split()}


@dataclass(frozen=True)
class Build:
    """How one target compiles a kernel, and what must come out."""

    num_warps: int
    num_stages: int
    mma: str | None = None  # pattern of the tensor-core instruction that must be there
    loop: int | None = None  # instructions of the hottest loop when this was recorded
    constexprs: Mapping[str, object] = field(default_factory=dict)  # over the case's own


@dataclass(frozen=True)
class KernelCase:
    name: str
    module: str  # inside the pack: "kernels.int8.triton.linear"
    function: str
    signature: Mapping[str, str]  # the arguments that are not constexpr: "*bf16", "i32", "fp32"
    constexprs: Mapping[str, object]
    targets: Mapping[str, Build]
    divisible: tuple[str, ...] = ()  # integer arguments that are multiples of 16; pointers always are
    fp_fusion: bool = True


@dataclass(frozen=True)
class Report:
    loop_spills: int  # instructions for spilled registers in the hottest loop (of the kernel, if it has none)
    shared: int
    mma: dict[str, int]  # tensor-core instructions of the whole kernel
    loop_instructions: int  # of the hottest loop, without NOPs

    def faults(self, build: Build, target: str) -> list[str]:
        """What is not as `build` says."""
        found = []
        if self.loop_spills:
            found.append(f"{self.loop_spills} spill instructions in the hottest loop")
        if self.shared > TARGETS[target].shared_limit:
            found.append(f"{self.shared} bytes of shared memory, {TARGETS[target].shared_limit} allowed")
        if build.mma and not re.search(build.mma, " ".join(self.mma)):
            found.append(f"no {build.mma} among the tensor-core instructions {self.mma}")
        change = self.loop_instructions / build.loop - 1 if build.loop else 0
        if change > 0.1 or (change < -0.1 and not other_triton()):
            found.append(f"the hottest loop has {self.loop_instructions} instructions, {build.loop} when recorded")
        return found


# --- reading machine code ---------------------------------------------------------------------------------------------

_LOCAL = ("LDL", "STL")


def _report_cuda(cubin: bytes, shared: int) -> Report:
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        code = read_sass(subprocess.run([tool, "-sass", path], check=True, capture_output=True, text=True).stdout)
    loop = hottest_loop(code)
    return _report(code, loop, sum(instruction.opcode.startswith(_LOCAL) for instruction in loop), shared)


def _report_amd(assembly: str, shared: int) -> Report:
    code = read_amdgcn(assembly)
    return _report(code, amd_loop(code), count_spills(code, read_metadata(assembly, "sgpr_spill_count")), shared)


def _report(code: list, loop: list, loop_spills: int, shared: int) -> Report:
    mma = dict(Counter(instruction.opcode for instruction in code if instruction.is_mma))
    return Report(loop_spills, shared, mma, len(loop))


# --- compiling, in the worker -----------------------------------------------------------------------------------------


def compile_case(case: KernelCase, target: str) -> Report:
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    build, gpu = case.targets[target], TARGETS[target]
    function = getattr(importlib.import_module(f"td_pack.{case.module}"), case.function)
    constexprs = {**case.constexprs, **build.constexprs}
    if {*case.signature, *constexprs} != {*function.arg_names}:
        raise ValueError(f"{case.name}: the kernel takes {function.arg_names}, not {[*case.signature, *constexprs]}")
    if runtime := [p.name for p in function.params if p.do_not_specialize and p.name in case.divisible]:
        raise ValueError(f"{case.name}: {runtime} are not specialized, so never known to be divisible")
    signature = {name: case.signature.get(name, "constexpr") for name in function.arg_names}
    attrs = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name in case.divisible
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constexprs, attrs=attrs)
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages, "enable_fp_fusion": case.fp_fusion}
    kernel = triton.compile(source, target=GPUTarget(gpu.backend, gpu.arch, gpu.warp_size), options=options)
    if gpu.backend == "hip":
        return _report_amd(kernel.asm["amdgcn"], kernel.metadata.shared)
    return _report_cuda(kernel.asm["cubin"], kernel.metadata.shared)


def serve() -> None:
    """Answers pickled (case, target) from stdin with a pickled report or error text until stdin ends."""
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the compiler prints must not mix with the answers
    while True:
        try:
            case, target = pickle.load(jobs)
        except EOFError:
            return
        try:
            answer = compile_case(case, target)
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises is the test's result
            answer = f"{type(error).__name__}: {error}"
        pickle.dump(answer, answers)
        answers.flush()


# --- other versions of Triton
# ---------------------------------------------------------------------------------------------


def other_triton() -> str:
    """The version of Triton to compile with instead of the environment's; empty for that one."""
    return os.environ.get("TURBODIFFUSION_AOT_TRITON", "")


def fetch_triton(version: str) -> Path:
    """A folder with that Triton alone, to stand before the environment's on the path."""
    folder = cache_dir() / f"triton-{version}"
    with lock(cache_dir() / "triton.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="fetch-") as name:
                options = ("--no-deps", "--target", f"{name}/triton")
                pip(Path(sys.executable), "install", *options, f"triton=={version}", doing=f"install triton {version}")
                Path(name, "triton").rename(folder)
    return folder


# --- in the tests -----------------------------------------------------------------------------------------------------


class Worker:
    """One compiling process, restarted when it crashed or hung."""

    def __init__(self) -> None:
        self.process = None

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment.setdefault("TRITON_CACHE_DIR", str(cache_dir() / "triton"))
        if version := other_triton():
            environment["PYTHONPATH"] = str(fetch_triton(version))
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cli; cli.load_pack(); "
            "from td_pack.tests.support.aot import serve; serve()"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def compile(self, case: KernelCase, target: str) -> Report | str:
        if self.process is None:
            self._start()
        timer = threading.Timer(COMPILE_SECONDS, self.process.kill)
        timer.start()
        try:
            pickle.dump((case, target), self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = self.process.wait()
            self.process = None
            return f"the compiler ended with exit code {code} or was stopped after {COMPILE_SECONDS} s"
        finally:
            timer.cancel()

    def close(self) -> None:
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()


class Compiler:
    """Compiles in the background, in the order of submission."""

    def __init__(self, workers: int = 2) -> None:
        self._threads = ThreadPoolExecutor(workers)
        self._workers = queue.SimpleQueue()
        for _ in range(workers):
            self._workers.put(Worker())

    def _compile(self, case: KernelCase, target: str) -> Report | str:
        worker = self._workers.get()
        try:
            return worker.compile(case, target)
        finally:
            self._workers.put(worker)

    def submit(self, case: KernelCase, target: str) -> "Future[Report | str]":
        """A report, or the text of the error."""
        return self._threads.submit(self._compile, case, target)

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._workers.empty():
            self._workers.get().close()

"""Runs cases on the emulator in a process of its own: Triton must not be in interpreter mode there, and compiles for
one target.

`Worker` is the tests' side, `serve` the process'. Compiled PTX stays in Triton's cache, in the cache folder of dev.py.
"""

import os
import pickle
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..support.environment import cache_dir
from .mutations import Mutation, apply, places

ROOT = Path(__file__).resolve().parents[2]


class Result(NamedTuple):
    """`checks` of a case, or the text of the fault or error that ended it; `launches` names the kernels that ran,
    `hazards` what was noted of which (shared.py), `mutations` the defects that can be put into them."""

    checks: list
    error: str | None
    launches: list[str]
    hazards: list[tuple[str, str]]
    mutations: list[Mutation]
    seconds: float


@contextmanager
def claim_device(capability: int):
    """Lets CPU tensors answer the launchers as tensors of a GPU of this compute capability would, so that the launch
    options are those of that GPU. Gives a list with an entry for each time a launcher asked."""
    import pytest
    import torch

    asked = []

    def answer(device=None):
        asked.append(device)
        return divmod(capability, 10)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", property(lambda self: True), raising=False)
        patch.setattr(torch.cuda, "get_device_capability", answer)
        yield asked


def run_case(name: str, capability: int, session, mutation: Mutation | None = None) -> Result:
    """Runs a case of cases.py, with a defect in one of its kernels if given; `session` is that of triton_driver."""
    from td_pack.kernels import use_backend

    from .cases import CASES
    from .uninitialized import EmptyTensors

    case, start, texts = CASES[name], time.process_time(), {}
    session.launches.clear()

    def mutate(kernel: str, text: str) -> str:
        texts[kernel] = text
        return apply(mutation, text) if mutation is not None and mutation.kernel == kernel else text

    session.mutate = mutate
    asked = []

    def on_kernels(call):
        empty = EmptyTensors()
        session.written = empty.written
        with empty.watching(), claim_device(capability) as questions, use_backend("triton"):
            result = call()
        asked.extend(questions)
        return result

    error, checks = None, []
    try:
        checks = case.run(on_kernels)
    except Exception as caught:  # noqa: BLE001 - a fault of any kind is the case's result
        error = f"{type(caught).__name__}: {caught}"
    if error is None and not session.launches:
        error = "no Triton kernel was launched"
    if error is None and case.sized and not asked:
        error = "no launcher asked for the compute capability: the launch options are not those of this GPU"
    names = sorted({launch.name for launch in session.launches})
    hazards = sorted({(launch.name, text) for launch in session.launches for text in launch.hazards})
    mutations = [] if mutation else [m for kernel, text in texts.items() for m in places(kernel, text)]
    return Result(checks, error, names, hazards, mutations, time.process_time() - start)


def serve(capability: int) -> None:
    """Answers pickled (case, mutation or None) from stdin with pickled Results until stdin ends."""
    import torch

    from .triton_driver import install

    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the compiler prints must not mix with the answers
    torch.set_num_threads(1)
    session = install(capability)
    while True:
        try:
            name, mutation = pickle.load(jobs)
        except EOFError:
            return
        pickle.dump(run_case(name, capability, session, mutation), answers)
        answers.flush()


class Worker:
    """A process that emulates a GPU of one compute capability (80, 89, ...)."""

    def __init__(self, capability: int):
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment.setdefault("TRITON_CACHE_DIR", str(cache_dir() / "triton"))
        program = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cli; cli.load_pack(); "
            f"from td_pack.tests.simulated_gpu.worker import serve; serve({capability})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, name: str, mutation: Mutation | None = None) -> Result:
        """Runs a case by its name, with a defect in one of its kernels if given."""
        try:
            pickle.dump((name, mutation), self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (EOFError, BrokenPipeError):
            return Result([], f"the emulator's process ended with exit code {self._process.wait()}", [], [], [], 0.0)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

"""`dev.py bench compile`: seconds to compile all kernels that one model launches, for GPUs that are not here, on one
core of this CPU and several at once, and to read them from Triton's cache at a second start.

The kernels are those that the loader has compiled in the background: of the model's operators and of their self-tests,
listed by `turbo_core/kernel_calls.py`, through Triton and ptxas up to the binary. Each run is a process of its own with
an empty cache."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "compile.md"
TARGETS = {
    80: "8.0 (A100)", 86: "8.6 (RTX 30)", 89: "8.9 (RTX 40)", 90: "9.0 (H100)", 100: "10.0 (B200)", 120: "12.0 (RTX 50)"
}  # fmt: skip
MODELS = {
    "14B, int8 with tile scales": {"width": 5120, "ffn_width": 13824, "heads": 40, "activations": "group"},
    "14B, int8 by channel": {"width": 5120, "ffn_width": 13824, "heads": 40, "activations": "row"},
    "14B, bf16": {"width": 5120, "ffn_width": 13824, "heads": 40},
    "1.3B, int8 with tile scales": {"width": 1536, "ffn_width": 8960, "heads": 12, "activations": "group"},
}
_HEAD = """# Compile times

Triton compiles a kernel when it is first launched with new types, sizes or a new launch config, and keeps it on disk
(`~/.triton/cache`): only the first run after an installation or an update waits. **These are compile times on the CPU
below, not times of a GPU**; another CPU takes another time. `python dev.py bench compile` writes this page: all that
one model launches, self-tests included, from Python to the binary that a GPU runs.

- one core: CPU seconds, Python's and those of the compilers that it starts, of one kernel after the other;
- one at a time, two at a time: seconds by the clock, as the loader compiles in the background. Other work shared the
  cores of this machine, less of it during some rows than during others;
- in Python: the share that holds Python's lock, so that neither another compilation nor ComfyUI goes on meanwhile; and
  the longest time that another thread, which looked every millisecond, had to wait;
- second start: the same kernels from Triton's cache.
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench compile", description=__doc__)
    parser.add_argument("--targets", nargs="+", type=int, choices=TARGETS, default=[80, 89, 90, 120])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--markdown", type=Path, default=PAGE, help="where the page goes (docs/benchmarks/compile.md)")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        model, target, threads = options.measure
        print(json.dumps(measure(model, int(target), int(threads))))
        return 0
    rows = []
    for model in options.models:
        for target in options.targets:
            rows.append(row(model, target))
            print(rows[-1], flush=True)
    options.markdown.write_text(page(rows), encoding="utf-8")
    return 0


def row(model: str, target: int) -> list[str]:
    """The cells of a model and a target."""
    with tempfile.TemporaryDirectory(prefix="turbodiffusion-bench-") as one, tempfile.TemporaryDirectory() as several:
        first, second = (measured(model, target, "1", one) for _ in range(2))
        both = measured(model, target, "2", several)
    assert second["compiled"] == 0 and second["read"] == first["compiled"] == both["compiled"]
    longest = max(first["each"], key=first["each"].get)
    name = longest.split()[0].strip("_").removesuffix("_kernel")
    seconds = [f"{value:.0f} s" for value in (first["cpu"], first["seconds"], both["seconds"])]
    python = f"{first['python'] / sum(first['each'].values()):.0%}, {first['pause'] * 1e3:.0f} ms"
    slowest = f"{name}, {first['each'][longest]:.1f} s"
    return [model, TARGETS[target], str(first["compiled"]), *seconds, python, f"{second['seconds']:.1f} s", slowest]


def measured(model: str, target: int, threads: str, cache: str) -> dict:
    """Runs `measure` in a new process with a cache of Triton."""
    dev = Path(__file__).resolve().parents[2] / "dev.py"
    command = [sys.executable, str(dev), "--here", "bench", "compile", "--measure", model, str(target), threads]
    environment = os.environ | {"TRITON_CACHE_DIR": cache}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measure(model: str, target: int, threads: int) -> dict:
    """Compiles in this process: seconds, of each kernel's slowest compilation too, and how many were compiled or
    read."""
    import torch
    from td_pack.kernels.background import BackgroundCompiler
    from td_pack.kernels.launch import chip_at
    from td_pack.tests.support.compiling import Compilations, as_if_on, kernels_of
    from td_pack.turbo_core.attention import SLA
    from td_pack.turbo_core.kernel_calls import Network

    network = Network(**MODELS[model], dtype=torch.bfloat16, attention=frozenset({SLA()}))
    with as_if_on(target) as gpu:
        counted, calls = Compilations(), kernels_of(gpu, network)
        began, cpu = time.perf_counter(), cpu_seconds()
        compiler = BackgroundCompiler(torch.device("cpu"), chip_at(gpu), threads)
        compiler.add(calls)
        pause, last = 0.0, began
        while not compiler.wait(0):
            time.sleep(0.001)
            pause, last = max(pause, time.perf_counter() - last), time.perf_counter()
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    return {
        "seconds": seconds,
        "cpu": cpu,
        "pause": pause,
        "python": counted.in_python,
        "compiled": len(counted.compiled),
        "read": len(counted.read),
        "each": {f"{name} {number}": seconds for (name, number), seconds in counted.seconds.items()},
    }


def cpu_seconds() -> float:
    """Of this process and of those that it started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def page(rows: list[list[str]]) -> str:
    import torch
    import triton

    header = [
        "model",
        "compute capability",
        "kernels",
        "one core",
        "one at a time",
        "two at a time",
        "in Python",
        "second start",
    ]
    header.append("slowest kernel")
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]
    machine = (
        f"{os.cpu_count()} cores of {cpu_name()}, torch {torch.__version__.split('+')[0]}, Triton {triton.__version__}."
    )
    return "\n".join([_HEAD, *lines, "", f"Measured on {machine}"]) + "\n"


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

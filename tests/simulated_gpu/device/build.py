"""Compiles the simulated device's libraries into the cache of dev.py, anew whenever a source or torch changes."""

import hashlib
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from ...support.environment import PINS, cache_dir, lock

SOURCES = Path(__file__).parent
RUNTIME = ("settings.c", "memory.c", "streams.c", "kernels.c", "refused.c")
OPERATORS = ("kernels_on_cpu.cpp", "allocation.cpp", "install.cpp")


def unavailable() -> str | None:
    """Why the device cannot be made here, or None."""
    import torch

    if sys.platform != "linux":
        return "the simulated device needs Linux"
    pinned = next(pin for pin in PINS if pin.startswith("torch=="))
    if f"torch=={torch.__version__.partition('+')[0]}" != pinned:
        return f"the simulated device is written for {pinned}, not {torch.__version__}"
    if torch.version.cuda is None or torch.version.cuda.partition(".")[0] != "13":
        return f"the simulated device needs torch's build for CUDA 13, not {torch.__version__}"
    if missing := [name for name in ("gcc", "g++") if shutil.which(name) is None]:
        return f"the simulated device needs {' and '.join(missing)}"
    return None


def _includes() -> list[str]:
    """Of the packages that torch depends on. NVIDIA's runtime has its headers without the folder crt/, Triton has it."""
    import torch
    import triton

    torch_include = Path(torch.__file__).parent / "include"
    packages = Path(torch.__file__).parents[1]
    folders = (
        torch_include,
        torch_include / "torch" / "csrc" / "api" / "include",
        packages / "nvidia" / "cu13" / "include",
        Path(triton.__file__).parent / "backends" / "nvidia" / "include",
    )
    return [part for folder in folders for part in ("-isystem", str(folder))]


def _compile(*command: str) -> None:
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr}")


def build() -> Path:
    """The folder with libcudart.so.13, libaten.so and driver/libcuda.so.1."""
    import torch

    sources = [
        Path(__file__),
        *sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".cpp", ".h", ".map")),
    ]
    key = hashlib.sha256(f"{torch.__version__} {sys.version_info[:2]} {platform.machine()}".encode())
    for source in sources:
        key.update(source.read_bytes())
    cache = cache_dir()
    folder = cache / "simulated-gpu" / key.hexdigest()[:12]
    with lock(cache / "simulated-gpu.lock"):
        if (folder / "complete").exists():
            return folder
        (folder / "driver").mkdir(parents=True, exist_ok=True)
        library = ("-O1", "-fPIC", "-shared", *_includes())
        torch_libraries = Path(torch.__file__).parent / "lib"
        _compile(
            *("gcc", "-D_GNU_SOURCE", *library, *RUNTIME, "-o", str(folder / "libcudart.so.13"), "-lpthread"),
            *("-Wl,-soname,libcudart.so.13", "-Wl,--version-script=libcudart.map"),
        )
        _compile(
            *("gcc", *library, "driver.c", "-o", str(folder / "driver" / "libcuda.so.1"), "-Wl,-soname,libcuda.so.1")
        )
        _compile(
            *("g++", "-std=c++17", *library, *OPERATORS, "-o", str(folder / "libaten.so")),
            *(f"-L{torch_libraries}", "-ltorch_cpu", "-ltorch_cuda", "-lc10", "-lc10_cuda"),
        )
        (folder / "complete").touch()
    return folder

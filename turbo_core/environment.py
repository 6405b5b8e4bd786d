"""Checks what the pack needs of the machine, without importing torch. Standard library only, because install.py runs it
alone."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST_COMFYUI = (0, 30, 0)
OLDEST_PYTHON = (3, 10)
OLDEST_CAPABILITY = 8.0  # bf16 and int8 tensor cores
# torch's minor version: the Triton it was made with; a newer torch takes the last (release notes of triton-windows).
TRITON_OF_TORCH = {(2, 7): (3, 3), (2, 8): (3, 4), (2, 9): (3, 5), (2, 10): (3, 6)}


def report(comfyui: Path | None) -> list[str]:
    """A line for each part, with what to do where something is missing. Never raises for what it cannot find."""
    return [
        f"Python {platform.python_version()} on {platform.system()}{_older(sys.version_info[:2], OLDEST_PYTHON)}",
        _comfyui(comfyui),
        _torch(),
        _triton(),
        *_gpus(),
        f"Models go to {(comfyui or Path('ComfyUI')) / 'models' / 'diffusion_models'}",
    ]


def find_comfyui(pack: Path) -> Path | None:
    """The ComfyUI the pack is in, or the one that COMFYUI_PATH names."""
    candidates = [os.environ.get("COMFYUI_PATH"), pack.parent.parent]
    return next((Path(path) for path in candidates if path and Path(path, "comfyui_version.py").is_file()), None)


def check_comfyui() -> None:
    """Raises ImportError, with what to do, in a ComfyUI that is too old; called inside one, before anything of it is
    imported."""
    version = _running_comfyui()
    if older := _older(_numbers(version), OLDEST_COMFYUI):
        raise ImportError(f"TurboDiffusion: this ComfyUI ({version}) is{older[1:]}; update ComfyUI and start it again.")


def does_not_fit(error: Exception) -> str:
    """The message for a ComfyUI that is new enough but lacks something that the pack imports."""
    return (
        f"TurboDiffusion does not fit this ComfyUI ({_running_comfyui()}): {error}. Update the pack and ComfyUI's "
        "own requirements; "
        "if both are up to date, please report this with the traceback above."
    )


def _running_comfyui() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return "0"  # older versions do not state theirs
    return __version__


def triton_command(torch: tuple[int, ...], windows: bool) -> str:
    """The pip command that installs the Triton for a torch."""
    if not windows:
        return f"{sys.executable} -m pip install triton"
    known = (triton for version, triton in TRITON_OF_TORCH.items() if version == torch[:2])
    major, minor = next(known, max(TRITON_OF_TORCH.values()))
    return f'{sys.executable} -m pip install -U "triton-windows<{major}.{minor + 1}"'


def _comfyui(folder: Path | None) -> str:
    if folder is None:
        return "ComfyUI: not found from here (the pack belongs in ComfyUI/custom_nodes)"
    found = re.search(r"__version__\s*=\s*[\"']([\d.]+)", (folder / "comfyui_version.py").read_text(encoding="utf-8"))
    version = found[1] if found else "of an unknown version"
    return f"ComfyUI {version}{_older(_numbers(version), OLDEST_COMFYUI)}"


def _torch() -> str:
    version = _installed("torch")
    if version is None:
        return "torch: not installed in this Python, so this is not the Python that ComfyUI runs in"
    spec = importlib.util.find_spec("torch")
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8") if spec and spec.origin else ""
    built = {
        name: found[1] for name in ("cuda", "hip") if (found := re.search(rf"^{name}\b.*?=\s*'([\d.]+)'", text, re.M))
    }
    return (
        f"torch {version}, built for {', '.join(f'{name.upper()} {v}' for name, v in built.items()) or 'the CPU alone'}"
    )


def _triton() -> str:
    for package in ("triton", "triton-windows"):
        if version := _installed(package):
            return f"{package} {version}"
    command = triton_command(_numbers(_installed("torch") or ""), platform.system() == "Windows")
    return f"triton: not installed, so the kernels run in plain torch, slowly; to change that: {command}"


def _gpus() -> list[str]:
    """A line for each NVIDIA GPU, from the driver's own tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [
            "GPU: no NVIDIA driver found (AMD's RDNA 3, RDNA 4 and gfx9 chips work with ROCm builds of torch; all "
            "else runs in plain torch)"
        ]
    try:
        command = [tool, "--query-gpu=name,compute_cap", "--format=csv,noheader"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return [f"GPU: nvidia-smi failed ({type(error).__name__})"]
    lines = []
    for name, _, capability in (line.rpartition(",") for line in listed.splitlines()[:4]):
        enough = re.fullmatch(r"\s*\d+\.\d+\s*", capability) and float(capability) >= OLDEST_CAPABILITY
        verdict = (
            "the Triton kernels run here"
            if enough
            else f"too old for the Triton kernels ({OLDEST_CAPABILITY} is needed)"
        )
        lines.append(f"GPU: {name}, compute capability {capability.strip()}: {verdict}")
    return lines or ["GPU: nvidia-smi lists none"]


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


def _older(found: tuple[int, ...], oldest: tuple[int, ...]) -> str:
    return f": too old, {'.'.join(map(str, oldest))} or newer is needed" if found < oldest else ""

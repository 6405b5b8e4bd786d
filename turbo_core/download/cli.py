"""`cli.py download`: the files of a model, from Hugging Face into ComfyUI's folders."""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from ..environment import find_comfyui
from ..errors import TurboError
from . import hub
from .catalog import INT8, PACK, TEMPLATES, HubFile, files_of
from .folders import CONFIGURATION, Folders

EXAMPLES = """\
examples:
  python cli.py download T2V-1.3B                    the small model: 1.5 GB, and 7 GB that every model needs
  python cli.py download I2V-A14B --bf16             for cards from 48 GB on
  python cli.py download T2V-14B --models D:\\models  into another folder than ComfyUI's own

An interrupted download goes on where it stopped. HF_ENDPOINT names a mirror, HF_TOKEN is sent where it is set.
"""


@dataclass(frozen=True)
class _Wanted:
    """A file that is not there yet."""

    file: HubFile
    remote: hub.Remote
    target: Path

    @property
    def left(self) -> int:
        """Bytes still to come."""
        return max(self.remote.size - hub.arrived(self.target, self.remote), 0)


def main(arguments: list[str]) -> int:
    """Runs the command; 0, or 1 after an error whose sentence goes to stderr, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        folders = _folders(options.models)
        if options.list or options.model is None:
            _list(folders)
        else:
            _download(options.model, options.bf16, folders)
    except TurboError as error:
        sys.stderr.write(f"download: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("download: stopped; what has arrived is kept, the same command goes on with it\n")
        return 130
    return 0


def _folders(models: Path | None) -> Folders:
    if models:
        return Folders(models.expanduser())
    comfyui = find_comfyui(PACK)
    if comfyui is None:
        raise TurboError(
            "ComfyUI was not found from here: give its models folder with --models, or set COMFYUI_PATH to ComfyUI."
        )
    configuration = comfyui / CONFIGURATION
    return Folders(comfyui / "models", configuration if configuration.is_file() else None)


def _list(folders: Folders) -> None:
    for model, template in TEMPLATES.items():
        _say(f"{model}: template {template}")
        for file in files_of(model):
            found = folders.find(file.folder, file.name)
            _say(f"  {'here   ' if found else 'missing'}  {found or folders.new(file.folder, file.name)}")


def _download(model: str, bf16: bool, folders: Folders) -> None:
    files = files_of(model, bf16)
    wanted = []
    for file in files:
        found = folders.find(file.folder, file.name)
        remote = hub.look_up(file)
        if found is None:
            wanted.append(_Wanted(file, remote, folders.new(file.folder, file.name)))
        elif found.stat().st_size != remote.size:
            raise TurboError(
                f"{found} has {found.stat().st_size} bytes and the hub's file has {remote.size}: remove or rename it, "
                "then run the same command again."
            )
        else:
            _say(f"{found} is here")
    _refuse_full_disks(wanted)
    for each in wanted:
        _say(f"{each.target}: {each.left / 1e9:.1f} of {each.remote.size / 1e9:.1f} GB to come")
        _fetch(each)
    _say(f"{model} is complete. {_next_step(model, bf16)}")


def _refuse_full_disks(wanted: list[_Wanted]) -> None:
    """Raises TurboError unless every disk has room for what goes to it."""
    needed: dict[int, int] = {}
    for each in wanted:
        folder = next(folder for folder in each.target.parents if folder.exists())
        disk = folder.stat().st_dev
        needed[disk] = needed.get(disk, 0) + each.left
        free = shutil.disk_usage(folder).free
        if needed[disk] > free:
            total = sum(other.left for other in wanted)
            raise TurboError(
                f"{total / 1e9:.1f} GB are to come and {folder} has {free / 1e9:.1f} GB free: free space, or choose "
                "another folder with --models."
            )


def _fetch(wanted: _Wanted) -> None:
    from tqdm import tqdm

    hub.receive(wanted.file, wanted.remote, wanted.target)
    with tqdm(total=wanted.remote.size, unit="B", unit_scale=True, desc="comparing SHA-256", disable=None) as bar:
        hub.finish(wanted.file, wanted.remote, wanted.target, bar.update)


def _next_step(model: str, bf16: bool) -> str:
    words = f"In ComfyUI, press R if its page is open, then open Templates > {PACK.name} > {TEMPLATES[model]}"
    if not bf16:
        return f"{words}."
    return f"{words}, and choose the files without {INT8.removesuffix('.pth')} in TurboDiffusion Loader."


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cli.py download",
        description="Gets the files that a template needs from Hugging Face, checks their size and SHA-256, and puts\n"
        "them where ComfyUI looks. Files that are there stay.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", nargs="?", choices=tuple(TEMPLATES), metavar="MODEL", help=", ".join(TEMPLATES))
    parser.add_argument("--bf16", action="store_true", help="the bf16 files instead of int8, twice as large")
    parser.add_argument("--list", action="store_true", help="list the models, their files and which are here")
    parser.add_argument(
        "--models",
        type=Path,
        metavar="DIR",
        help="a models folder; without it ComfyUI's own, or the default one of its extra_model_paths.yaml",
    )
    return parser

"""Downloads a file from Hugging Face, completely or not at all.

huggingface_hub's own hf_hub_download begins anew after a kill and compares no hash, so the part that arrived is kept
here, under a name that ComfyUI does not list, and the file gets its own name after its SHA-256 was compared.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import TurboError
from .catalog import HubFile

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
READ = 8 << 20  # bytes


@dataclass(frozen=True)
class Remote:
    """The hub's metadata of a file."""

    url: str
    size: int
    etag: str

    @property
    def sha256(self) -> str | None:
        """Large files have it as their ETag; None where the server gives another."""
        is_sha256 = len(self.etag) == 64 and set(self.etag) <= set("0123456789abcdef")
        return self.etag if is_sha256 else None


def hub() -> ModuleType:
    """huggingface_hub, which transformers brings to ComfyUI. Raises TurboError where it is missing."""
    # Xet, its chunk protocol, keeps no partial file from which a killed download could resume.
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
    try:
        import huggingface_hub
        import huggingface_hub.file_download
    except ImportError as error:
        raise TurboError(
            "download needs the package huggingface_hub: run it with ComfyUI's Python, which has it, or install it "
            "with: pip install huggingface_hub"
        ) from error
    return huggingface_hub


def look_up(file: HubFile) -> Remote:
    """The size and hash of a file. Raises TurboError if the hub does not give them."""
    library = hub()
    url = library.hf_hub_url(file.repo, file.path, revision=file.revision)
    try:
        found = library.get_hf_file_metadata(url)
    except Exception as error:  # its HTTP library is requests, httpx or httpx2, by its version
        raise _explained(file, error) from error
    if found.size is None or not found.etag:
        raise TurboError(f"{url} gives neither size nor hash: is HF_ENDPOINT a mirror of Hugging Face?")
    return Remote(url, found.size, found.etag)


def part_of(target: Path, remote: Remote) -> Path:
    """The path of the partial file, beside the target; each version of the file has another one."""
    version = hashlib.sha256(remote.etag.encode()).hexdigest()[:8]
    return target.with_name(f"{target.name}.{version}.part")


def arrived(target: Path, remote: Remote) -> int:
    """How many bytes of a file an earlier download left."""
    part = part_of(target, remote)
    return part.stat().st_size if part.is_file() else 0


def receive(file: HubFile, remote: Remote, target: Path) -> None:
    """Downloads what is missing of a file, with a bar, beside its place. Raises TurboError, and leaves what has
    arrived."""
    library = hub()
    part = part_of(target, remote)
    with _disk_faults(file, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if arrived(target, remote) > remote.size:
            part.unlink()
        with part.open("ab") as stream:
            try:
                library.file_download.http_get(
                    remote.url,
                    stream,
                    resume_size=stream.tell(),
                    headers=library.utils.build_hf_headers(),
                    expected_size=remote.size,
                    displayed_filename=target.name,
                )
            except Exception as error:  # as in look_up
                if isinstance(error, OSError) and error.errno in FULL:
                    raise
                kept = "What has arrived is kept: run the same command again to go on."
                raise _explained(file, error, kept) from error


def finish(file: HubFile, remote: Remote, target: Path, compared: Callable[[int], object]) -> None:
    """Gives a file that has arrived its name, if it is what the hub states; `compared` is called with the number of
    bytes just read. Raises TurboError, and removes a damaged file."""
    part = part_of(target, remote)
    found = hashlib.sha256()
    with _disk_faults(file, target):
        size = part.stat().st_size
        with part.open("rb") as stream:
            while remote.sha256 and (block := stream.read(READ)):
                found.update(block)
                compared(len(block))
        wrong = "size" if size != remote.size else "SHA-256" if remote.sha256 not in (None, found.hexdigest()) else None
        if wrong:
            part.unlink()
            raise TurboError(
                f"{file.name} arrived damaged (its {wrong} is not what the hub states) and was removed: run the same "
                "command again."
            )
        os.replace(part, target)


@contextlib.contextmanager
def _disk_faults(file: HubFile, target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise TurboError(
                f"The disk of {target.parent} is full: free space and run the same command again, which goes on with "
                "what has arrived."
            ) from error
        raise TurboError(
            f"{file.name} could not be written to {target.parent} ({error}): choose another folder with --models."
        ) from error


def _explained(file: HubFile, error: Exception, then: str = "Run the same command again later.") -> TurboError:
    """What to do about an error of the hub."""
    names = {each.__name__ for each in type(error).__mro__}
    where = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co')}/{file.repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "GatedRepoError" in names:
        text = (
            f"{where} is given only to those who accepted its terms: accept them on that page and set HF_TOKEN to a "
            "token of your account."
        )
    elif "OfflineModeIsEnabled" in names:
        text = "HF_HUB_OFFLINE is set, so nothing can be downloaded: unset it."
    elif "EntryNotFoundError" in names or "RevisionNotFoundError" in names:
        text = f"{where} has no {file.path} any more: update the pack, whose templates name the files."
    elif "RepositoryNotFoundError" in names or status in (401, 403):
        text = (
            f"{where} is not there or not for you ({status}): set HF_TOKEN to a token of an account that may read it."
        )
    else:
        reason = " ".join(str(error).split()) or type(error).__name__
        text = f"{file.name} could not be had from {where} ({reason}). {then}"
    return TurboError(text)

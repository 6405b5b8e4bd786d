"""The folder of results: each job's own folder appears complete or not at all, and never twice."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import TurboError
from .job import Job
from .worker import Outcome

RECORD = "job.json"
_PARTIAL = ".partial-"
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_KINDS = {"video": (".mp4", ".webm", ".mkv", ".mov", ".gif"), "image": (".png", ".jpg", ".jpeg", ".webp")}


class DiskFull(TurboError):
    """There is no room for results: nothing more can be kept until a person makes some."""


class Results:
    """The folder of a batch, locked against a second batch until it is closed."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / ".lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise TurboError(f"Another batch is writing to {folder}; wait for it or choose another --out.") from None
        except OSError as error:
            raise TurboError(f"{folder} cannot be written ({error.strerror}); choose another --out.") from error
        for leftover in folder.glob(f"{_PARTIAL}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def close(self) -> None:
        """Releases the folder for another batch."""
        self._lock.release()

    def record(self, job: str) -> dict[str, Any] | None:
        """What job.json of a complete result says, or None if there is no such result."""
        try:
            record: dict[str, Any] = json.loads((self.folder / job / RECORD).read_text(encoding="utf-8"))
            sound = all(
                (self.folder / job / name).stat().st_size == entry["bytes"] for name, entry in record["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return record if sound else None

    def save(self, job: Job, outcome: Outcome, worker: str, attempt: int) -> None:
        """Writes a result. Raises DiskFull, or TurboError if it cannot be written for another reason."""
        partial = self.folder / f"{_PARTIAL}{job.id}-{secrets.token_hex(4)}"
        try:
            partial.mkdir()
            files = {}
            for name, data in zip(
                file_names([name for name, _ in outcome.files]), (d for _, d in outcome.files), strict=True
            ):
                _write(partial / name, data)
                files[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            if outcome.strip:
                _write(partial / "strip.jpg", outcome.strip)
            record = {
                "id": job.id,
                "row": job.row,
                "settings": job.settings,
                "worker": worker,
                "attempt": attempt,
                "seconds": outcome.timings["total"],
                "files": files,
            }
            _write(partial / "prompt.json", _json(outcome.prompt))
            _write(partial / "timings.json", _json(outcome.timings))
            _write(partial / "log.txt", outcome.log.encode("utf-8", "replace"))
            _write(partial / RECORD, _json(record))
            _sync(partial)
            self._place(partial, job.id)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno in _FULL:
                raise DiskFull(
                    f"The disk of {self.folder} is full; make room and start again with --resume."
                ) from error
            raise TurboError(
                f"The result could not be written to {self.folder} ({error.strerror or error})."
            ) from error
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _place(self, partial: Path, job: str) -> None:
        target = self.folder / job
        if target.exists():
            if self.record(job):  # the first result stands
                shutil.rmtree(partial)
                return
            target.rename(self.folder / f"{_PARTIAL}{job}-{secrets.token_hex(4)}")  # damaged: cleared at the next start
        partial.rename(target)
        _sync(self.folder)


def file_names(given: list[str]) -> list[str]:
    """Names for a server's files under which they are stored: only the suffix is the server's, and only if it is a
    plain one."""
    names: list[str] = []
    for name in given:
        suffix = Path(name).suffix.lower()
        suffix = suffix if _SUFFIX.fullmatch(suffix) and suffix != ".json" else ".bin"
        kind = next((kind for kind, suffixes in _KINDS.items() if suffix in suffixes), "file")
        count = sum(Path(n).suffix == suffix for n in names)
        names.append(f"{kind}{f'-{count + 1}' if count else ''}{suffix}")
    return names


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1).encode()


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes the names in a folder last through a power failure, where folders can be synced."""
    if os.name == "nt":
        return
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""`manifest.sqlite`: every job of a batch and every attempt at it, one transaction for each change."""

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TurboError
from .job import Job
from .text import brief, encodable
from .workflow import is_prompt

NAME = "manifest.sqlite"
VERSION = 1
_SYNCHRONOUS = "FULL"  # a job called done stays done through a power failure
PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"
_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, place INTEGER, row INTEGER NOT NULL, settings TEXT NOT NULL, prompt TEXT NOT NULL,
    uploads TEXT NOT NULL, state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
    attempts INTEGER NOT NULL DEFAULT 0, worker TEXT, error TEXT, seconds REAL, finished REAL
);
CREATE TABLE attempts (
    job TEXT NOT NULL REFERENCES jobs (id), number INTEGER NOT NULL, worker TEXT NOT NULL,
    started REAL NOT NULL, finished REAL, error TEXT, PRIMARY KEY (job, number)
);
"""


_COLUMNS = "id, row, settings, prompt, uploads, state, attempts, worker, error, seconds, place IS NOT NULL"


@dataclass(frozen=True)
class Record:
    """What the manifest says of a job; `current` if the last table had it."""

    job: Job
    state: str
    attempts: int
    worker: str | None
    error: str | None
    seconds: float | None
    current: bool


class ManifestError(TurboError):
    """The manifest cannot be read or written; it still holds what it held before the call."""


class Manifest:
    """The open manifest of a folder. Its calls may come from one thread at a time, and raise ManifestError. `wait`:
    seconds for another program to release a lock."""

    def __init__(self, folder: Path, wait: float = 5.0):
        self._path = path = folder / NAME
        try:
            self._db = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {_SYNCHRONOUS}")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise ManifestError(f"{path} was written by another version of the batch tool; choose another --out.")
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            self._db.execute(f"SELECT {_COLUMNS} FROM jobs LIMIT 0")
            self._db.execute("SELECT job, number, worker, started, finished, error FROM attempts LIMIT 0")
        except sqlite3.Error as error:
            raise ManifestError(
                f"{path} cannot be used ({error}); choose another --out, or remove that file."
            ) from error

    def close(self) -> None:
        """Closes the file; what a full disk kept out of it stays in the write-ahead log."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def add(self, jobs: Iterable[Job]) -> None:
        """Makes these the jobs of the last table, in this order, and adds those that are not there yet: all, or none if
        the iteration raises."""
        with self._transaction():
            self._db.execute("UPDATE jobs SET place = NULL")
            for place, job in enumerate(jobs):
                values = (job.id, place, job.row, *map(_json, (job.settings, job.prompt, job.uploads)), PENDING)
                self._db.execute(
                    "INSERT INTO jobs (id, place, row, settings, prompt, uploads, state) VALUES (?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET place = excluded.place, row = excluded.row,"
                    " settings = excluded.settings, uploads = excluded.uploads",
                    values,
                )

    def records(self) -> list[Record]:
        """Every job: those of the last table in its order, then the others."""
        try:
            with closing(self._db.execute(f"SELECT {_COLUMNS} FROM jobs ORDER BY place IS NULL, place, id")) as rows:
                return [_record(row) for row in rows]
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise ManifestError(
                f"{self._path} is damaged ({error}); choose another --out, or remove that file."
            ) from error

    def reopen(self, ids: Iterable[str]) -> None:
        """Makes jobs wait again: failed ones, and those whose result was removed. The next attempt at a job that a
        killed run left running gets the same number and prompt id, by which its server may still know it."""
        with self._transaction():
            self._db.executemany(
                "UPDATE jobs SET attempts = attempts - (state = 'running'), state = 'pending', error = NULL WHERE id "
                "= ?",
                ((i,) for i in ids),
            )

    def begin(self, job: str, worker: str) -> int:
        """Records the beginning of an attempt and returns its number."""
        with self._transaction():
            self._db.execute(
                "UPDATE jobs SET state = 'running', worker = ?, attempts = attempts + 1 WHERE id = ?",
                (encodable(worker), job),
            )
            number: int = self._db.execute("SELECT attempts FROM jobs WHERE id = ?", (job,)).fetchone()[0]
            self._db.execute(
                "INSERT OR REPLACE INTO attempts (job, number, worker, started) VALUES (?, ?, ?, ?)",
                (job, number, encodable(worker), time.time()),
            )
        return number

    def end(self, job: str, number: int, state: str, error: str | None = None, seconds: float | None = None) -> None:
        """Records the end of an attempt: the job is done, failed for good, or waits for another one. `seconds` is the
        attempt's length."""
        now, error = time.time(), encodable(error) if error else None
        with self._transaction():
            self._db.execute(
                "UPDATE attempts SET finished = ?, error = ? WHERE job = ? AND number = ?", (now, error, job, number)
            )
            self._db.execute(
                "UPDATE jobs SET state = ?, error = ?, seconds = ?, finished = ? WHERE id = ?",
                (state, error, seconds, now, job),
            )

    def adopt(self, job: str, seconds: float | None) -> None:
        """Marks a job as done whose result was stored by a run that was killed before it could record that."""
        with self._transaction():
            self._db.execute("UPDATE jobs SET state = 'done', error = NULL, seconds = ? WHERE id = ?", (seconds, job))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:  # a full disk may have rolled it back already
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise ManifestError(
                f"{self._path} could not be written ({error}); make room or free it, and start again."
            ) from error


def _record(row: tuple[Any, ...]) -> Record:
    settings, prompt, uploads = map(json.loads, row[2:5])
    if not isinstance(settings, dict) or not isinstance(uploads, dict) or not is_prompt(prompt):
        raise ValueError(f"job {brief(row[0])} is incomplete")
    job = Job(row[0], row[1], prompt, settings, uploads)
    return Record(job, row[5], row[6], row[7], row[8], row[9], bool(row[10]))


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)

"""`manifest.sqlite`: every job of a batch and every attempt at it, one transaction for each change."""

import json
import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ..errors import TurboError
from .job import Job

NAME = "manifest.sqlite"
VERSION = 1
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


class Manifest:
    """The open manifest of a folder. Its calls may come from one thread at a time."""

    def __init__(self, folder: Path):
        path = folder / NAME
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # a job called done stays done through a power failure
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, VERSION):
                raise TurboError(f"{path} was written by another version of the batch tool; choose another --out.")
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        except sqlite3.Error as error:
            raise TurboError(f"{path} cannot be used ({error}); choose another --out, or remove that file.") from error

    def close(self) -> None:
        self._db.close()

    def add(self, jobs: Iterable[Job]) -> None:
        """Makes these the jobs of the last table, in this order, and enters those that are not there yet."""
        with _Transaction(self._db):
            self._db.execute("UPDATE jobs SET place = NULL")
            for place, job in enumerate(jobs):
                values = (job.id, place, job.row, *map(_text, (job.settings, job.prompt, job.uploads)), PENDING)
                self._db.execute(
                    "INSERT INTO jobs (id, place, row, settings, prompt, uploads, state) VALUES (?, ?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET place = excluded.place, row = excluded.row,"
                    " settings = excluded.settings, uploads = excluded.uploads",
                    values,
                )

    def records(self) -> list[Record]:
        """Every job: those of the last table in its order, then the others."""
        columns = "id, row, prompt, settings, uploads, state, attempts, worker, error, seconds, place IS NOT NULL"
        with closing(self._db.execute(f"SELECT {columns} FROM jobs ORDER BY place IS NULL, place, id")) as rows:
            return [Record(Job(r[0], r[1], *map(json.loads, r[2:5])), *r[5:10], bool(r[10])) for r in rows]

    def reopen(self, ids: Iterable[str]) -> None:
        """Makes jobs wait again: failed ones, and those whose result was removed. An attempt that a killed run left gets its
        number again, and with it its prompt's id, by which its server may still know it."""
        with _Transaction(self._db):
            self._db.executemany(
                "UPDATE jobs SET attempts = attempts - (state = 'running'), state = 'pending', error = NULL WHERE id = ?",
                ((i,) for i in ids),
            )

    def begin(self, job: str, worker: str) -> int:
        """Enters an attempt and returns its number."""
        with _Transaction(self._db):
            self._db.execute(
                "UPDATE jobs SET state = 'running', worker = ?, attempts = attempts + 1 WHERE id = ?", (worker, job)
            )
            number = self._db.execute("SELECT attempts FROM jobs WHERE id = ?", (job,)).fetchone()[0]
            self._db.execute(
                "INSERT OR REPLACE INTO attempts (job, number, worker, started) VALUES (?, ?, ?, ?)",
                (job, number, worker, time.time()),
            )
        return number

    def end(self, job: str, number: int, state: str, error: str | None = None, seconds: float | None = None) -> None:
        """Closes an attempt: the job is done, failed for good, or waits for another one."""
        now = time.time()
        with _Transaction(self._db):
            self._db.execute(
                "UPDATE attempts SET finished = ?, error = ? WHERE job = ? AND number = ?", (now, error, job, number)
            )
            self._db.execute(
                "UPDATE jobs SET state = ?, error = ?, seconds = ?, finished = ? WHERE id = ?",
                (state, error, seconds, now, job),
            )

    def adopt(self, job: str, seconds: float | None) -> None:
        """Marks a job done whose result was stored by a run that was killed before it could say so."""
        with _Transaction(self._db):
            self._db.execute("UPDATE jobs SET state = 'done', error = NULL, seconds = ? WHERE id = ?", (seconds, job))


class _Transaction:
    def __init__(self, db: sqlite3.Connection):
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind, *_) -> None:
        if kind is None:
            self._db.execute("COMMIT")
        elif self._db.in_transaction:  # a full disk may have rolled it back already
            self._db.execute("ROLLBACK")


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)

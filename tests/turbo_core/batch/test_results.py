"""What is written: whole or not at all, never twice, under names that the server does not choose."""

import contextlib
import dataclasses
import hashlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from td_pack.tests.support.videos import largest_file
from td_pack.turbo_core.batch.cli import main
from td_pack.turbo_core.batch.job import Job
from td_pack.turbo_core.batch.manifest import DONE, FAILED, PENDING, RUNNING, Manifest, ManifestError, Record
from td_pack.turbo_core.batch.results import Results, file_names
from td_pack.turbo_core.batch.sheet import write_sheet
from td_pack.turbo_core.batch.worker import Outcome
from td_pack.turbo_core.errors import TurboError

JOB = Job("a" * 20, 2, {"1": {"class_type": "X", "inputs": {}}}, {"seed": 1})


def outcome(data: bytes = b"video") -> Outcome:
    return Outcome(JOB.prompt, [("x_00001_.mp4", data)], b"jpeg", {"total": 1.5}, "log")


@pytest.fixture
def results(tmp_path):
    opened = Results(tmp_path / "out")
    yield opened
    opened.close()


def test_a_result_is_complete_and_described(results):
    results.save(JOB, outcome(), "w", 1)
    folder = results.folder / JOB.id
    written = {"job.json", "log.txt", "prompt.json", "strip.jpg", "timings.json", "video.mp4"}
    assert {path.name for path in folder.iterdir()} == written
    record = results.record(JOB.id)
    assert record == json.loads((folder / "job.json").read_text())
    assert record["files"] == {"video.mp4": {"bytes": 5, "sha256": hashlib.sha256(b"video").hexdigest()}}
    assert (record["seconds"], record["settings"], record["worker"]) == (1.5, {"seed": 1}, "w")


@pytest.mark.parametrize("left, kept", [(b"first", b"first"), (b"fi", b"second")])
def test_the_first_whole_result_of_an_id_stands(results, left, kept):
    video = results.folder / JOB.id / "video.mp4"
    results.save(JOB, outcome(b"first"), "w", 1)
    video.write_bytes(left)
    assert (results.record(JOB.id) is None) == (left != b"first")
    results.save(JOB, outcome(b"second"), "w", 2)
    assert video.read_bytes() == kept
    if kept == left:
        assert [p.name for p in results.folder.iterdir() if p.is_dir()] == [JOB.id]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"files": []}',
        '{"files": ["job.json"]}',
        '{"files": {"job.json": 3}}',
        '{"files": {"job.json": {}}}',
        "[" * 60000,
    ],
    ids=lambda content: content[:30],
)
def test_a_record_that_is_none_is_no_result(results, content):
    results.save(JOB, outcome(), "w", 1)
    (results.folder / JOB.id / "job.json").write_text(content)
    assert results.record(JOB.id) is None


def test_the_sheet_shows_half_a_character_as_its_code(tmp_path):
    record = Record(Job("ab", 2, {}, {"prompt": "a \ud800"}), "done", 1, "w", None, 1.0, True)
    page = write_sheet(tmp_path, [record], {}).read_text(encoding="utf-8")
    assert "<dt>prompt</dt><dd>a \\ud800</dd>" in page


def test_the_server_s_names_are_not_used(results):
    names = {
        "../../../etc/passwd": "file.bin",
        "a/b.mp4": "video.mp4",
        "c.MP4": "video-2.mp4",
        "job.json": "file-2.bin",
        "x.p\x00g": "file-3.bin",
        ".bashrc": "file-4.bin",
        "d.png": "image.png",
        "e.tar.gz": "file.gz",
        "f.latent": "file.latent",
    }
    assert file_names(list(names)) == list(names.values())


def test_what_a_killed_run_left_is_removed_and_a_second_run_kept_out(tmp_path):
    (tmp_path / ".partial-x").mkdir()
    (tmp_path / ".partial-x" / "video.mp4").touch()
    first = Results(tmp_path)
    assert not list(tmp_path.glob(".partial-*"))
    with pytest.raises(TurboError, match="Another batch is writing to"):
        Results(tmp_path)
    first.close()
    Results(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TurboError, match=f"^{tmp_path}/file/out cannot be written .Not a directory.*; choose"):
        Results(tmp_path / "file" / "out")


def test_a_file_that_cannot_be_written_leaves_nothing_and_the_next_is_written(results):
    large = dataclasses.replace(JOB, id="b" * 20)
    with largest_file(1_000_000):
        with pytest.raises(TurboError, match=rf"could not be written to {results.folder} \(File too large\)\.$"):
            results.save(large, outcome(bytes(3_000_000)), "w", 1)
        results.save(JOB, outcome(), "w", 1)
    assert [path.name for path in results.folder.iterdir() if path.is_dir()] == [JOB.id]
    assert results.record(large.id) is None and results.record(JOB.id)


def test_the_manifest_keeps_every_attempt_and_reopens(tmp_path):
    jobs = [JOB, Job("b" * 20, 3, JOB.prompt)]
    manifest = Manifest(tmp_path)
    manifest.add(jobs)
    assert manifest.begin(JOB.id, "w1 \udcff") == 1
    manifest.end(JOB.id, 1, PENDING, "lost \ud800")  # SQLite has no lone surrogates
    assert manifest.begin(JOB.id, "w2") == 2
    assert [r.state for r in manifest.records()] == [RUNNING, PENDING]
    manifest.close()  # as a killed run leaves it
    manifest = Manifest(tmp_path)
    manifest.reopen([JOB.id])
    assert manifest.begin(JOB.id, "w2") == 2, "the attempt that was cut off is the same one"
    manifest.end(JOB.id, 2, DONE, None, 1.5)
    record = manifest.records()[0]
    assert (record.job, record.state, record.attempts, record.worker, record.seconds) == (JOB, DONE, 2, "w2", 1.5)
    manifest.add([jobs[1]])
    assert [(r.job.id[0], r.current) for r in manifest.records()] == [("b", True), ("a", False)]
    manifest.end(jobs[1].id, 1, FAILED, "no")
    manifest.close()


def overwrite(path) -> None:
    path.write_bytes(b"not a database" * 100)


def damage(path) -> None:
    """Garbage in all pages but the first, which has the schema."""
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192)


def change(statement: str) -> Callable[[Path], None]:
    def run(path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute(statement)

    return run


@pytest.mark.parametrize(
    "harm, says",
    [
        (overwrite, "cannot be used (file is not a database)"),
        (damage, "malformed"),
        (change("DROP TABLE attempts"), "cannot be used (no such table: attempts)"),
        (change("ALTER TABLE jobs DROP COLUMN worker"), "cannot be used (no such column: worker)"),
        (change("PRAGMA user_version = 7"), "was written by another version"),
        (change("UPDATE jobs SET prompt = '{'"), "is damaged ("),
        (change("UPDATE jobs SET prompt = '[]'"), f"is damaged (job {JOB.id} is incomplete)"),
    ],
    ids=["overwritten", "damaged", "no table", "no column", "version", "not JSON", "no prompt"],
)
def test_a_manifest_that_cannot_be_used_is_one_sentence(tmp_path, capsys, harm, says):
    manifest = Manifest(tmp_path)
    manifest.add([JOB])
    manifest.close()
    harm(tmp_path / "manifest.sqlite")
    before = (tmp_path / "manifest.sqlite").read_bytes()
    assert main(["--resume", "--out", str(tmp_path), "--server", "http://127.0.0.1:9"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"batch: {tmp_path / 'manifest.sqlite'} ") and says in said and said.count("\n") == 1
    assert (tmp_path / "manifest.sqlite").read_bytes() == before


def test_a_locked_manifest_is_one_sentence(tmp_path):
    manifest = Manifest(tmp_path, wait=0.05)
    with contextlib.closing(sqlite3.connect(tmp_path / "manifest.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ManifestError, match=r"could not be written \(database is locked\); make room or free it"):
            manifest.add([JOB])
    manifest.add([JOB])
    assert [record.job for record in manifest.records()] == [JOB]
    manifest.close()

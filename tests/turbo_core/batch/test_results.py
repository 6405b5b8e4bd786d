"""What is written: whole or not at all, never twice, under names of our own."""

import hashlib
import json
import subprocess
import sys
import textwrap

import pytest
from td_pack.tests.support.fresh import PRELUDE
from td_pack.turbo_core.batch.job import Job
from td_pack.turbo_core.batch.manifest import DONE, FAILED, PENDING, RUNNING, Manifest, Record
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
    assert sorted(p.name for p in folder.iterdir()) == [
        "job.json",
        "log.txt",
        "prompt.json",
        "strip.jpg",
        "timings.json",
        "video.mp4",
    ]
    record = results.record(JOB.id)
    assert record == json.loads((folder / "job.json").read_text())
    assert record["files"] == {"video.mp4": {"bytes": 5, "sha256": hashlib.sha256(b"video").hexdigest()}}
    assert (record["seconds"], record["settings"], record["worker"]) == (1.5, {"seed": 1}, "w")


def test_the_first_result_of_an_id_stands(results):
    results.save(JOB, outcome(b"first"), "w", 1)
    results.save(JOB, outcome(b"second"), "w", 2)
    assert (results.folder / JOB.id / "video.mp4").read_bytes() == b"first"
    assert [p.name for p in results.folder.iterdir() if p.is_dir()] == [JOB.id]


def test_a_cut_result_is_none_and_is_replaced(results):
    results.save(JOB, outcome(b"first"), "w", 1)
    (results.folder / JOB.id / "video.mp4").write_bytes(b"fi")
    assert results.record(JOB.id) is None
    results.save(JOB, outcome(b"second"), "w", 2)
    assert (results.folder / JOB.id / "video.mp4").read_bytes() == b"second"


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
    assert "a \\ud800" in write_sheet(tmp_path, [record], {}).read_text(encoding="utf-8")


def test_the_server_s_names_are_not_used(results):
    names = [
        "../../../etc/passwd",
        "a/b.mp4",
        "c.MP4",
        "job.json",
        "x.p\x00g",
        ".bashrc",
        "d.png",
        "e.tar.gz",
        "f.latent",
    ]
    assert file_names(names) == [
        "file.bin",
        "video.mp4",
        "video-2.mp4",
        "file-2.bin",
        "file-3.bin",
        "file-4.bin",
        "image.png",
        "file.gz",
        "file.latent",
    ]


def test_what_a_killed_run_left_is_removed_and_a_second_run_kept_out(tmp_path):
    (tmp_path / ".partial-x").mkdir()
    (tmp_path / ".partial-x" / "video.mp4").touch()
    first = Results(tmp_path)
    assert not list(tmp_path.glob(".partial-*"))
    with pytest.raises(TurboError, match="Another batch is writing to"):
        Results(tmp_path)
    first.close()
    Results(tmp_path).close()


SAVE = """
{prelude}
load_pack()
import resource, signal
from pathlib import Path
from td_pack.turbo_core.batch.job import Job
from td_pack.turbo_core.batch.results import DiskFull, Results
from td_pack.turbo_core.batch.worker import Outcome
{limit}
results = Results(Path(sys.argv[1]))
for i, size in enumerate((100_000, 3_000_000, 100_000)):
    job = Job(str(i) * 20, i, {{}})
    try:
        results.save(job, Outcome({{}}, [("a.mp4", bytes(size))], None, {{"total": 1}}), "w", 1)
    except Exception as error:
        print(type(error).__name__, error)
    print(i, results.record(job.id) is not None, len(list(results.folder.glob(".partial*"))))
"""


def save_script(path, limit: str):
    path.write_text(SAVE.format(prelude=PRELUDE, limit=textwrap.dedent(limit)))
    return path


def test_a_file_that_cannot_be_written_leaves_nothing_and_the_next_is_written(tmp_path):
    limit = """
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    """
    command = [sys.executable, str(save_script(tmp_path / "save.py", limit)), str(tmp_path / "out")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[1] == f"TurboError The result could not be written to {tmp_path / 'out'} (File too large)."
    assert [lines[0], *lines[2:]] == ["0 True 0", "1 False 0", "2 True 0"]


def test_a_full_disk_leaves_nothing_and_says_so(tmp_path):
    """On a real file system of 1 MB, in a namespace of its own."""
    (tmp_path / "small").mkdir()
    script = save_script(tmp_path / "save.py", "")
    inside = f"mount -t tmpfs -o size=1m none {tmp_path / 'small'} && {sys.executable} {script} {tmp_path / 'small'}"
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", inside], capture_output=True, text=True)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no private file systems here: {done.stderr.strip()}")
    assert done.stdout.splitlines() == [
        "0 True 0",
        f"DiskFull The disk of {tmp_path / 'small'} is full; make room and start again with --resume.",
        "1 False 0",
        "2 True 0",
    ]


def test_the_manifest_keeps_every_attempt_and_reopens(tmp_path):
    jobs = [JOB, Job("b" * 20, 3, {}, {})]
    manifest = Manifest(tmp_path)
    manifest.add(jobs)
    assert manifest.begin(JOB.id, "w1") == 1
    manifest.end(JOB.id, 1, PENDING, "lost")
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


def test_a_manifest_of_another_kind_is_refused(tmp_path):
    (tmp_path / "manifest.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(TurboError, match="cannot be used"):
        Manifest(tmp_path)

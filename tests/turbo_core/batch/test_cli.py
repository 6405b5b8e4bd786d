"""`cli.py batch` against a live server: results, second starts, faults, Ctrl-C."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter

import av
import pytest
from PIL import Image
from td_pack.tests.support import checkpoints
from td_pack.tests.support.jobs import at_the_gate, with_gate
from td_pack.tests.support.server import ROOT, ComfyServer

pytestmark = pytest.mark.server
HANGS = 300  # seconds; what takes longer never ends


def states(out) -> Counter:
    with sqlite3.connect(out / "manifest.sqlite") as db:
        return Counter(state for (state,) in db.execute("SELECT state FROM jobs WHERE place IS NOT NULL"))


def folders(out) -> set[str]:
    return {path.name for path in out.iterdir() if path.is_dir()}


@pytest.fixture
def url(server) -> str:
    return server.url


def inputs_of(prompt: str) -> dict:
    return {key: (node["class_type"], node["inputs"]) for key, node in json.loads(prompt).items()}


def write(path, text: str):
    path.write_text(text)
    return path


def test_videos_come_back_and_a_second_start_skips_them(batch, tmp_path, t2v, i2v):
    workflow = write(tmp_path / "i2v.json", json.dumps(i2v))
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    table = write(tmp_path / "jobs.csv", 'prompt,seed,image\n"a <b>fox</b>, red",1,red.png\na crow,2,red.png\n')
    assert batch(table, "--workflow", workflow) == 0, batch.said
    made = folders(batch.out)
    assert states(batch.out) == {"done": 2} and len(made) == 2
    for name in made:
        folder = batch.out / name
        with av.open(str(folder / "video.mp4")) as video:
            frames = [frame.to_image() for frame in video.decode(video=0)]
            assert len(frames) == 5
            assert inputs_of(video.metadata["prompt"]) == inputs_of((folder / "prompt.json").read_text())
        assert Image.open(folder / "strip.jpg").height == 120
        timings = json.loads((folder / "timings.json").read_text())
        assert timings["total"] >= timings["running"] > 0
        assert "TurboDiffusionSample" in (folder / "log.txt").read_text()
    page = (batch.out / "index.html").read_text()
    assert "a &lt;b&gt;fox&lt;/b&gt;, red" in page and all(f"{name}/strip.jpg" in page for name in made)
    times = {name: (batch.out / name / "video.mp4").stat().st_mtime_ns for name in made}
    assert batch(table, "--workflow", workflow) == 0
    assert {name: (batch.out / name / "video.mp4").stat().st_mtime_ns for name in made} == times
    write(table, 'prompt,seed,image\n"a <b>fox</b>, red",1,red.png\na crow,3,red.png\n')
    assert batch(table, "--workflow", workflow) == 0
    assert len(folders(batch.out)) == 3 and made < folders(batch.out), "the edited row is a new job"


def test_a_long_video_is_a_row(batch, tmp_path, long):
    Image.new("RGB", (80, 60), "red").save(tmp_path / "red.png")
    table = write(tmp_path / "jobs.csv", "prompt,seed,image\na fox,1,red.png\n")
    assert batch(table, "--workflow", write(tmp_path / "long.json", json.dumps(long))) == 0, batch.said
    (made,) = folders(batch.out)
    with av.open(str(batch.out / made / "video.mp4")) as video:
        assert len(list(video.decode(video=0))) == 3 * 9 - 2 * 5


def test_a_dry_run_lists_every_fault_and_writes_nothing(batch, tmp_path, t2v):
    workflow = write(tmp_path / "t2v.json", json.dumps(t2v))
    table = write(tmp_path / "jobs.jsonl", '{"seed": 1}\n{"seed": "x", "widht": 3}\nnot json\n{"seed": [1, 2]}\n')
    assert batch(table, "--workflow", workflow, "--dry-run") == 2
    lines = batch.said.splitlines()
    assert [line.split(":")[0] for line in lines] == ["row 2", "row 2", "row 3", "row 4", "2 jobs, 3 faults"]
    assert not batch.out.exists()
    assert batch(table, "--workflow", workflow) == 2 and "Nothing was run." in batch.said
    assert batch(write(table, '{"seed": 1}\n'), "--workflow", workflow, "--dry-run") == 0
    assert batch.said == "1 jobs, 0 faults\n"


def test_a_job_that_always_fails_is_marked_and_the_rest_finish_and_a_later_start_goes_on(batch, tmp_path, trouble):
    marker = tmp_path / "later"
    failing = [f'{{"trouble.kind": "error", "trouble.once": "{marker}{i}"}}' for i in range(2)]
    table = write(tmp_path / "jobs.jsonl", "\n".join(['{"latent.length": 5}', *failing]))
    marker.parent.mkdir(exist_ok=True)
    assert batch(table, "--workflow", trouble, "--retries", 0) == 1
    assert states(batch.out) == {"done": 1, "failed": 2}
    assert "rows 2-3 (2 jobs, " in batch.said
    # When it happens, and once for both rows at the end.
    assert batch.said.count("TestTrouble (node trouble): This node always fails.") == 3
    assert batch("--resume") == 0, batch.said  # its marker is there now
    assert states(batch.out) == {"done": 3}


def test_out_of_memory_is_tried_again(batch, tmp_path, trouble, server):
    marker = tmp_path / "oom"
    log_before = len(server.log())
    assert batch("--workflow", trouble, "--set", "trouble.kind=out of memory", "--set", f"trouble.once={marker}") == 0
    with sqlite3.connect(batch.out / "manifest.sqlite") as db:
        errors = [error for (error,) in db.execute("SELECT error FROM attempts ORDER BY number")]
    assert "out of memory" in errors[0] and errors[1] is None
    assert "out of memory" in server.log()[log_before:].lower()


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "dev.py"), "--here", "batch", *map(str, arguments)]


def test_a_killed_server_s_jobs_are_done_on_the_other(batch, tmp_path, t2v, server):
    """Each server has a job at the gate, a file in its own folder, when the second is killed."""
    workflow = write(tmp_path / "t2v.json", json.dumps(with_gate(t2v)))
    gate = server.base / "the second server is killed"
    with ComfyServer(tmp_path / "second", test_nodes=True) as second:
        checkpoints.write_models(second.models_dir)
        where = ["--server", second.url, "--server", server.url, "--out", batch.out]
        arguments = command(
            "--workflow", workflow, "--seeds", "1-4", "--set", f"trouble.once={gate.name}", "--json", *where
        )
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as running:
            events = []
            for line in running.stdout:
                events.append(json.loads(line))
                if at_the_gate(events[-1]) and events[-1]["worker"] == second.url:
                    second.kill()
                    gate.touch()
    gate.unlink()
    assert running.returncode == 0
    assert states(batch.out) == {"done": 4} and len(folders(batch.out)) == 4
    lost = [event for event in events if event["event"] == "retry"]
    assert [event["worker"] for event in lost] == [second.url]
    assert "does not answer" in lost[0]["error"]


def wait_for(condition) -> None:
    end = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.05)


def running_on(server) -> list:
    return json.loads(server.client.get("/queue"))["queue_running"]


@pytest.fixture
def started(batch, tmp_path, trouble, server):
    """Starts the command in a process of its own; returns it while its first job waits in the server."""

    def start(kind: str, *more: str) -> subprocess.Popen:
        marker = tmp_path / "waited"
        words = ["--workflow", trouble, "--set", f"trouble.kind={kind}", "--set", f"trouble.once={marker}", *more]
        where = ["--out", batch.out, "--server", server.url]
        running = subprocess.Popen(command(*words, *where), stderr=subprocess.PIPE, text=True)
        wait_for(marker.exists)
        return running

    return start


@pytest.mark.parametrize("stop,code", [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)])
def test_a_stopped_batch_goes_on_where_it_was(batch, started, server, stop, code):
    running = started("wait", "--vary", "latent.length=5,9,13")
    running.send_signal(stop)
    _, said = running.communicate(timeout=HANGS)
    assert running.returncode == code, said
    if stop == signal.SIGKILL:
        assert len(running_on(server)) == 1 and states(batch.out) == {"running": 1, "pending": 2}
        server.client.interrupt()  # the attempt is found again, fails, and is tried once more
    else:
        assert "--resume goes on with the rest" in said
        wait_for(lambda: not running_on(server))
        assert states(batch.out) == {"pending": 3}
    assert batch("--resume") == 0, batch.said
    assert states(batch.out) == {"done": 3} and len(folders(batch.out)) == 3


def test_a_killed_batch_joins_the_prompt_that_its_server_still_runs(batch, started, tmp_path, server):
    running = started("audience")
    running.kill()
    running.communicate()
    (queued,) = running_on(server)
    assert batch("--resume") == 0, batch.said
    assert states(batch.out) == {"done": 1}
    prompts = [entry["prompt"] for entry in json.loads(server.client.get("/history")).values()]
    assert [prompt[1] for prompt in prompts if str(tmp_path) in json.dumps(prompt[2])] == [queued[1]], (
        "nothing is made twice"
    )


def test_an_attempt_that_takes_too_long_is_ended(batch, trouble, server):
    settings = ["--set", "trouble.kind=wait", "--timeout", 2, "--retries", 0]
    assert batch("--workflow", trouble, *settings) == 1
    assert "did not finish in 2 s" in batch.said and states(batch.out) == {"failed": 1}
    queue = json.loads(server.client.get("/queue"))
    wait_for(lambda: not running_on(server))
    assert not queue["queue_pending"]

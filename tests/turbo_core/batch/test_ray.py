"""`cli.py batch --ray`: real Ray, real servers; a killed worker process, a killed server, Ctrl-C."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from PIL import Image
from td_pack.tests.support import checkpoints
from td_pack.tests.support.jobs import at_the_gate, with_gate
from td_pack.tests.support.server import ROOT, install

pytestmark = pytest.mark.server


@pytest.fixture
def base(tmp_path):
    """A ComfyUI base directory with the pack, the test nodes and tiny models."""
    folder = tmp_path / "base"
    checkpoints.write_models(folder / "models")
    install(ROOT, folder / "custom_nodes" / "pack")
    install(ROOT / "tests" / "server_nodes", folder / "custom_nodes" / "test_nodes")
    return folder


def start(tmp_path, base, *arguments: object) -> subprocess.Popen:
    """The command with the folder for results and servers on the tiny models; its events are lines of stdout."""
    command = [sys.executable, ROOT / "dev.py", "--here", "batch", *arguments, "--out", tmp_path / "out", "--json"]
    return subprocess.Popen(
        [*map(str, command), "--comfyui-args", f"--base-directory {base}"],
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "stderr").open("w"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )


def follow(process: subprocess.Popen, on_event=lambda event, events: None) -> list[dict]:
    """All events up to the end, each passed to `on_event` with those so far."""
    events = []
    with process:
        for line in process.stdout:
            events.append(json.loads(line))
            on_event(events[-1], events)
    return events


def gate(tmp_path, row: int) -> Path:
    """The file that a row's job waits for before it decodes, so that what happens meanwhile happens in the middle of
    it."""
    return tmp_path / f"gate-{row}"


def check(out, jobs: int, events: list[dict]) -> None:
    """Every job is done once, its video is there, and no server is left."""
    made = [path.parent.name for path in out.glob("*/video.mp4")]
    with sqlite3.connect(out / "manifest.sqlite") as db:
        rows = db.execute("SELECT id, state, settings FROM jobs").fetchall()
    assert Counter(state for _, state, _ in rows) == {"done": jobs}
    assert sorted(made) == sorted(job for job, _, _ in rows)
    assert {json.loads(settings)["seed"] for _, _, settings in rows} == set(range(1, jobs + 1))
    assert Counter(event["job"] for event in events if event["event"] == "done") == dict.fromkeys(made, 1)
    assert not [path for path in out.iterdir() if path.name.startswith(".partial")]
    assert_no_server_is_left(events)


def assert_no_server_is_left(events: list[dict]) -> None:
    servers = [event["server_pid"] for event in events if "server_pid" in event]
    assert not [
        pid for pid in servers if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


def last_ready(events: list[dict], worker: str) -> dict:
    return [event for event in events if event["event"] == "worker" and event["worker"] == worker and "pid" in event][
        -1
    ]


def test_jobs_on_two_workers_survive_a_killed_worker_and_a_killed_server(tmp_path, base, t2v):
    path, table = tmp_path / "workflow.json", tmp_path / "jobs.jsonl"
    path.write_text(json.dumps(with_gate(t2v)))
    rows = ({"seed": row, "trouble.once": str(gate(tmp_path, row))} for row in range(1, 9))
    table.write_text("\n".join(map(json.dumps, rows)))
    killed = []

    def kill(event: dict, events: list[dict]) -> None:
        """In the middle of a job: first the worker's process, later a server."""
        if not at_the_gate(event):
            return
        done = sum(e["event"] == "done" for e in events)
        if (len(killed), done >= 2, done >= 4) in ((0, True, False), (1, True, True)):
            ready = last_ready(events, event["worker"])
            killed.append(event["job"])
            os.kill(ready["server_pid" if len(killed) == 2 else "pid"], signal.SIGKILL)
        gate(tmp_path, event["row"]).touch()

    process = start(tmp_path, base, table, "--workflow", path, "--workers", 2, "--ray", "local")
    events = follow(process, kill)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    check(tmp_path / "out", 8, events)
    assert len(killed) == 2
    retried = [event["job"] for event in events if event["event"] == "retry"]
    assert len(retried) >= 2 and set(killed) <= set(retried)


def test_ctrl_c_ends_the_servers_and_pictures_reach_the_next_ones(tmp_path, base, i2v):
    for name in ("red", "blue"):
        Image.new("RGB", (80, 60), name).save(tmp_path / f"{name}.png")
    rows = [f"{image}.png,{row - 1},{gate(tmp_path, row)}" for row, image in ((2, "red"), (3, "blue"), (4, "red"))]
    (tmp_path / "jobs.csv").write_text("\n".join(["image,seed,trouble.once", *rows]))
    (tmp_path / "i2v.json").write_text(json.dumps(with_gate(i2v)))
    gate(tmp_path, 2).touch()
    where = ["--ray", "local", "--workers", 1]
    process = start(tmp_path, base, tmp_path / "jobs.csv", "--workflow", tmp_path / "i2v.json", *where)
    stopped = []

    def stop(event: dict, events: list[dict]) -> None:
        """In the middle of the second job, when the first is done."""
        second = next((e["job"] for e in events if at_the_gate(e) and e["row"] == 3), None)
        if second and not stopped and any(e["event"] == "done" for e in events):
            stopped.append(second)
            process.send_signal(signal.SIGINT)

    events = follow(process, stop)
    assert process.returncode == 130, (tmp_path / "stderr").read_text()
    assert_no_server_is_left(events)
    for row in (3, 4):
        gate(tmp_path, row).touch()
    resumed = start(tmp_path, base, "--resume", *where)
    events += follow(resumed)
    assert resumed.returncode == 0, (tmp_path / "stderr").read_text()
    check(tmp_path / "out", 3, events)

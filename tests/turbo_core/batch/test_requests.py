"""Requests that ask for too much, or for something that cannot be: one bounded sentence, exit 2, and signals are
heard."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from aiohttp import web
from td_pack.tests.support.hostile import fifo
from td_pack.tests.support.server import ROOT
from td_pack.tests.turbo_core.batch.scripted_server import WORKFLOW, ScriptedServer, served
from td_pack.turbo_core.batch import table
from td_pack.turbo_core.batch.cli import main
from td_pack.turbo_core.batch.text import LONGEST

LONG = "x" * 100_000


@pytest.fixture(scope="module")
def url():
    with served(ScriptedServer()) as (address,):
        yield address


W = ("--workflow", "workflow.json")


@pytest.mark.parametrize(
    "arguments, table_text, says",
    [
        ((), None, "There is nothing to do"),
        (("--seeds", "1-2", "--repeat", "2"), None, "all choose the seeds"),
        (("--seeds", "1", "--ray", "local"), None, "Give --server or --ray"),
        (("--seeds", "1", "--workers", "2"), None, "add --ray local"),
        (("absent.csv",), None, "absent.csv cannot be read (No such file or directory); check the name."),
        (("--seeds", "1", "--workflow", "absent.json"), None, "absent.json cannot be read"),
        (("--seeds", "1", "--server", ""), None, "--server is '': give an address such as http://127.0.0.1:8188."),
        (("--seeds", "1", "--server", "http://"), None, "--server is 'http://': give an address"),
        (("--seeds", "1", "--server", "ftp://127.0.0.1"), None, "--server is 'ftp://127.0.0.1': give an address"),
        (("--seeds", "1-1000000000"), None, "--seeds makes more than 100,000 jobs"),
        (("--seeds", "1-99999,1-99999,1-99999"), None, "--seeds makes more than 100,000 jobs"),
        (("--repeat", "1000000000"), None, "makes more than 100,000 jobs, which is the limit; split the table"),
        (("--seeds", "1-20", "--max-jobs", "10"), None, "--seeds makes more than 10 jobs"),
        ((), "\n".join([json.dumps({"seed": [1] * 1000, "1.text": ["a"] * 1000})] * 3), "more than 100,000 jobs"),
        (("--max-jobs", "2"), '{"seed": 1}\n' * 3, "jobs.jsonl has more than 2 jobs"),
        (("--seeds", "1", "--retries", "-5"), None, "--retries is -5: give 0 or more."),
        (("--seeds", "1", "--max-jobs", "0"), None, "--max-jobs is 0: give 1 or more."),
        (("--seeds", "1", "--timeout", "nan"), None, "--timeout is nan: give seconds, or 0 for no limit."),
        (("--seeds", "1", "--timeout", "-3"), None, "--timeout is -3.0: give seconds"),
        (("--seeds", "1", "--timeout", "inf"), None, "--timeout is inf: give seconds"),
        (("--seeds", "1", "--retries", LONG), None, "--retries: invalid int value"),
        (("--seeds", LONG), None, "--seeds is 'xxx"),
        (("--set", LONG), None, "is not a setting; write NAME=VALUE."),
        (("--vary", f"{LONG}=[1"), None, "is not JSON"),
        (("--vary", "seed=" + "[" * 60_000), None, "The list of seed is not JSON"),
        (("--resume", "--dry-run"), None, "There is no batch in"),
        (("--seeds", "1", "--set", f"{LONG}=1"), None, "no input is called 'xxx"),
        (("--set", f"1.text={LONG}", "--set", f"seed={LONG}"), None, "takes a whole number, not 'xxx"),
        ((), json.dumps({"seed": [[[[1]]]]}), "takes a whole number, not [[[1]]]"),
        ((), '{"seed": NaN}', "it is not JSON (NaN is not a JSON value)"),
        ((), '{"seed": ' + "[" * 500 + "]" * 500 + "}", "it is nested too deeply"),
        ((), json.dumps({LONG: 1}), "no input is called 'xxx"),
        ((), '{"seed": ' + "9" * 4000 + "}", "and the most is 1000"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_a_request_that_cannot_be_is_one_bounded_sentence(batch, tmp_path, arguments, table_text, says):
    if table_text is not None:
        (tmp_path / "jobs.jsonl").write_text(table_text)
        arguments = ("jobs.jsonl", *arguments)
    start = time.monotonic()
    assert batch(*W, *arguments) == 2 and says in batch.said, batch.said[:3000]
    assert len(batch.said) < LONGEST + 100 and batch.said.count("\n") <= 3
    assert time.monotonic() - start < 60  # it hangs, or expands what it should count


def test_a_workflow_is_needed(batch):
    assert batch("--seeds", "1-2") == 2
    assert batch.said == "batch: --workflow is missing: give a workflow in API format.\n"


async def broken(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500)


@pytest.mark.parametrize("address", ["http://{}", "{}", " HTTP://{}/ ", "{}/base/"])
def test_a_server_that_fails_is_named_in_one_spelling_of_its_address(batch, address):
    """`/base` stands for a proxy, where the scripted server has only /system_stats."""
    with served(ScriptedServer(object_info=broken, base=based)) as (url,):
        assert batch(*W, "--repeat", "2", url=address.format(url.removeprefix("http://"))) == 2
    named = f"batch: {url}{'/base' if 'base' in address else ''} does not say what nodes it has (500"
    assert batch.said.startswith(named) and batch.said.count("\n") == 1


async def based(request: web.Request) -> web.StreamResponse:
    return web.Response(status=200 if request.path.endswith("/system_stats") else 500)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9", "http://[::1", "http://127.0.0.1:99999", f"http://{'a' * 300}"]
)
def test_an_address_that_leads_nowhere_does_not_answer(batch, address):
    assert batch(*W, "--seeds", "1", url=address) == 2
    assert batch.said == f"batch: {address} does not answer; is ComfyUI running there?\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", ["jobs.csv", "workflow.json"])
def test_a_fifo_is_not_waited_for(batch, tmp_path, name):
    (tmp_path / "jobs.csv").write_text("seed\n1\n")
    fifo(tmp_path / name)
    assert batch("jobs.csv", *W) == 2 and f"{name} cannot be read (it is not a regular file)" in batch.said


def test_equal_faults_are_one_line_with_their_rows(batch, tmp_path):
    rows = ["seed,1.text", "1,a", *(f"x,{i}" for i in range(5000)), "7,b", "-1,c"]
    (tmp_path / "jobs.csv").write_text("\n".join(rows))
    assert batch("jobs.csv", *W, "--dry-run") == 2
    assert batch.said.splitlines() == [
        "rows 3-5002: seed: takes a whole number, not 'x'",
        "row 5004: seed of node 1 (Save) is -1, and the least is 0",
        "2 jobs, 5001 faults",
    ]


def test_a_report_has_a_hundred_lines(batch, tmp_path):
    (tmp_path / "jobs.csv").write_text("\n".join(["seed", *(f"x{i}" for i in range(150))]))
    assert batch("jobs.csv", *W) == 2
    assert batch.said.splitlines()[100:] == ["and 50 more faults", "0 jobs, 150 faults", "Nothing was run."]


def test_jobs_are_counted_without_being_made():
    rows = [table.Row(2, {"seed": [0] * 10**5, "a": [0] * 10**5}), table.Row(3, {"seed": 1})]
    assert table.count_jobs(rows, {"b": [1, 2, 3]}, 10**6) == (10**10 + 1) * 3 * 10**6
    assert table.count_jobs(rows, {"a": [1, 2]}, 1) == 10**5 * 2 + 2


@pytest.mark.skipif(os.name == "nt", reason="signals to a process are another thing on Windows")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_planning_hears_signals(tmp_path, stop):
    """The signal comes once the plan, of 100,000 jobs, can begin."""
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))
    server = ScriptedServer()
    with served(server) as (url,):
        words = ["--workflow", "workflow.json", "--server", url, "--out", "out", "--seeds", "1-1000", "--vary"]
        words.append("1.text=" + ",".join(map(str, range(100))))
        command = [sys.executable, str(ROOT / "dev.py"), "--here", "batch", *words]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            while "/object_info" not in server.asked:
                assert running.poll() is None
                time.sleep(0.01)
            time.sleep(0.3)  # it may as well come while the answer is read
            running.send_signal(stop)
            out, said = running.communicate(timeout=300)
    assert running.returncode == 130 and not out, (out, said)
    assert said.decode().startswith("batch: stopped") and said.count(b"\n") == 1


def test_without_ray_the_command_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "td_pack.turbo_core.batch.ray_workers", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))
    monkeypatch.chdir(tmp_path)
    assert main([*W, "--seeds", "1", "--ray", "local", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("batch: --ray needs Ray (") and said.rstrip().endswith("-m pip install ray")

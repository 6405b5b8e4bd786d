"""Servers that do not answer as ComfyUI does: the jobs run elsewhere, every answer has a limit, and one sentence names
the server."""

import asyncio
import contextlib
import gzip
import io
import json
import sqlite3
import sys
import time
from collections import Counter

import pytest
from aiohttp import web
from td_pack.tests.turbo_core.batch.scripted_server import NODES, WORKFLOW, ScriptedServer, served
from td_pack.turbo_core.batch.cli import main
from td_pack.turbo_core.batch.connection import Limits
from td_pack.turbo_core.batch.job import Task
from td_pack.turbo_core.batch.server_worker import ServerWorker
from td_pack.turbo_core.batch.servers import ask_servers
from td_pack.turbo_core.batch.worker import Outcome

HANGS = 60  # seconds
LIMITS = Limits(0.4, 0.4, 0.4, 1e6, 100_000, 100_000, 0.5)
HTML, DEEP = "<html>Log in</html>", "[" * 10_000 + "]" * 10_000


async def endless(request: web.Request, pause: float = 0.0) -> web.StreamResponse:
    """A body without an end and without a length."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await answer.write(b"x" * (1 if pause else 4096))
            await asyncio.sleep(pause)
    return answer


async def trickling(request: web.Request) -> web.StreamResponse:
    return await endless(request, 0.05)


async def stalled(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(HANGS)
    return web.Response()


async def bomb(request: web.Request) -> web.StreamResponse:
    """1 MB of JSON in 1 KB."""
    body = gzip.compress(b'{"a": "' + bytes(b"a" * (1 << 20)) + b'"}')
    return web.Response(body=body, headers={"Content-Encoding": "gzip"})


async def redirected(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "http://elsewhere.invalid/"})


async def unauthorized(request: web.Request) -> web.StreamResponse:
    return web.Response(status=401)


def event(kind: str, **data: object) -> str:
    return json.dumps({"type": kind, "data": {"prompt_id": "PROMPT_ID", **data}})


def combos(levels: int) -> str:
    """Dynamic combos within each other."""
    inputs: dict[str, object] = {}
    for _ in range(levels):
        inputs = {"required": {"a": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a", "inputs": inputs}]}]}}
    return json.dumps({"SaveLatent": {"input": inputs, "output": []}})


UNUSABLE_PLANS = {
    "nested": {"object_info": combos(100)},
    "list": {"object_info": "[]"},
    "null": {"object_info": "null"},
    "deep": {"object_info": DEEP},
    "wrong input": {"object_info": '{"SaveLatent": {"input": {"required": {"samples": 3}}, "output": []}}'},
    "wrong node": {"object_info": '{"SaveLatent": []}'},
    "wrong output": {"object_info": '{"SaveLatent": {"output": 5}}'},
}
UNUSABLE_RUNS = {
    "queue HTML": {"queue": HTML},
    "queue wrong": {"queue": '{"queue_running": [[1]], "queue_pending": []}'},
    "queue deep": {"queue": DEEP},
    "queue 302": {"queue": redirected},
    "queue 401": {"queue": unauthorized},
    "queue endless": {"queue": endless},
    "history HTML": {"history": HTML},
    "history list": {"history": "[]"},
    "prompt list": {"prompt": "[]"},
    "prompt other": {"prompt": '{"prompt_id": "another"}'},
    "event {}": {"ws": "{}"},
    "event HTML": {"ws": HTML},
    "event null": {"ws": "null"},
    "no node": {"ws": event("executing")},
    "wrong progress": {"ws": event("progress", node="1", value="x", max=None)},
    "wrong error": {"ws": event("execution_error", traceback=3)},
    "wrong cache": {"ws": event("execution_cached", nodes=5)},
    "view endless": {"view": endless},
}


@pytest.mark.server
def test_jobs_of_unusable_servers_run_elsewhere_and_cost_nothing(server, tmp_path, trouble, capsys, monkeypatch):
    """Every server that passes the plan gets a job, with no retry allowed, beside one real ComfyUI."""
    monkeypatch.setattr("td_pack.turbo_core.batch.cli.ServerWorker", lambda url: ServerWorker(url, QUICK))
    info = server.client.get("/object_info").decode()
    behaviors = UNUSABLE_PLANS | UNUSABLE_RUNS
    servers = {name: ScriptedServer(**{"object_info": info} | answers) for name, answers in behaviors.items()}
    jobs = 2 * len(servers)
    with served(*servers.values()) as urls:
        where = [word for url in (*urls, server.url) for word in ("--server", url)]
        lengths = ",".join(str(4 * i + 1) for i in range(jobs))
        out = ["--out", str(tmp_path / "out"), "--retries", "0", "--json"]
        code = main(["--workflow", str(trouble), "--vary", f"latent.length={lengths}", *out, *where])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    events = [json.loads(line) for line in captured.out.splitlines()]
    lost = {event["worker"]: event["error"] for event in events if event["event"] == "retry"}
    for (name, scripted), url in zip(servers.items(), urls, strict=True):
        said = lost.get(url, "") if name in UNUSABLE_RUNS else captured.err
        assert f"{url} is not a ComfyUI that can be used (" in said, name
        assert scripted.asked.count("/prompt") <= 2, name  # a second one while the files of the first come
    given_up = Counter(event["worker"] for event in events if event.get("state") == "given up")
    assert given_up == Counter(url for name, url in zip(servers, urls, strict=True) if name in UNUSABLE_RUNS)
    with sqlite3.connect(tmp_path / "out" / "manifest.sqlite") as db:
        assert db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall() == [("done", jobs)]


QUICK = Limits(20, 20, 20, 1e6, 4 << 20, 1 << 20)


def attempt(url: str, timeout: float | None = None, **files: bytes) -> Outcome:
    """One attempt at the workflow on that server."""

    async def go() -> Outcome:
        worker = ServerWorker(url, LIMITS)
        try:
            await worker.start()
            async for item in worker.run(Task("job", 1, WORKFLOW, files, timeout)):
                if isinstance(item, Outcome):
                    return item
        finally:
            await worker.stop()
        raise AssertionError("no outcome")

    return asyncio.run(asyncio.wait_for(go(), HANGS))


async def large(request: web.Request) -> web.StreamResponse:
    return web.Response(body=bytes(LIMITS.result_bytes + 1))


@pytest.mark.parametrize(
    "answers, timeout, says, lost, unusable",
    [
        ({"view": stalled}, 5, "/view was not answered in time", True, False),
        ({"view": trickling}, 5, "/view was not answered in time", True, False),
        ({"view": trickling}, 0.2, "The files did not come within 0 s.", True, False),
        ({"view": endless}, None, "/view does not end within 100000 bytes", True, True),
        ({"view": large}, None, "Its files are too large (/view has 100001 bytes", False, False),
        ({"queue": bomb}, None, "/queue is not JSON", True, True),
        ({"ws": stalled}, None, "does not answer (/ws was not answered in time)", True, False),
        ({"history": stalled}, None, "does not answer (/history/", True, False),
        ({"queue": stalled}, 0.2, "did not finish in 0 s", True, False),
        ({"upload": stalled}, None, "/upload/image was not answered in time", True, False),
        ({"ws": event("progress", node="1", value=1, max=2)}, 0.3, "did not finish in 0 s", True, False),
        ({"upload": "[]"}, None, "/upload/image does not have ComfyUI's form", True, True),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_every_answer_of_an_attempt_has_a_limit(answers, timeout, says, lost, unusable):
    with served(ScriptedServer(**answers)) as (url,):
        outcome = attempt(url, timeout, **({"batch/a.png": b"x"} if "upload" in answers else {}))
    assert says in (outcome.error or "") and (outcome.lost, outcome.unusable) == (lost, unusable), outcome


async def failed(request: web.Request) -> web.StreamResponse:
    """A history in which a node failed with a message that holds a lone surrogate."""
    error = ["execution_error", {"exception_message": "half \ud800 of a pair", "node_id": "1", "node_type": "Save"}]
    return web.json_response({request.path.rsplit("/")[-1]: {"outputs": {}, "status": {"messages": [error]}}})


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_that_no_encoding_has_do_not_end_a_batch(tmp_path, monkeypatch, capsys, encoding):
    workflow, out = tmp_path / "workflow.json", tmp_path / "vid\u0259o \udcff"
    workflow.write_text(json.dumps(WORKFLOW))
    written = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", written)
    with served(ScriptedServer(history=failed)) as (url,):
        arguments = ["--workflow", str(workflow), "--set", "1.text=\u4e2d\ud800", "--retries", "0", "--server", url]
        assert main([*arguments, "--out", str(out)]) == 1, capsys.readouterr()
    assert b"0 of 1 jobs done, 1 failed" in written.buffer.getvalue() and b"\\udcff" in written.buffer.getvalue()
    assert "Save (node 1): half \\ud800 of a pair" in capsys.readouterr().err


def test_a_slow_server_does_not_hold_the_others():
    async def ask(urls: list[str]):
        workers = [ServerWorker(url) for url in urls]
        try:
            return await ask_servers(workers, NODES, False, grace=0.2)
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))

    with served(ScriptedServer(object_info=stalled), ScriptedServer()) as (slow, good):
        start = time.monotonic()
        known = asyncio.run(ask([slow, good]))
        assert time.monotonic() - start < HANGS / 2
    assert list(known.infos) == [good] and not known.unusable
    assert known.failures == [f"{slow} did not say what nodes it has within 0 s; the plan is not checked against it."]

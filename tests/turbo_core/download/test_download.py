"""`cli.py download` in a process of its own, against a server that speaks the hub's protocol."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from td_pack.tests.support.server import ROOT
from td_pack.tests.turbo_core.download.hub_server import TOKEN, HubServer
from td_pack.turbo_core.download.catalog import TEMPLATES, files_of
from td_pack.turbo_core.download.hub import _disk_faults
from td_pack.turbo_core.errors import TurboError

MODEL = "T2V-1.3B"
FILES = files_of(MODEL)
CHUNK = 10 * 1024 * 1024  # bytes that huggingface_hub writes at a time
SIZE = CHUNK + 1_000_000


@pytest.fixture
def hub():
    contents = {f"{each.repo}/{each.path}": os.urandom(SIZE) for each in FILES + files_of(MODEL, bf16=True)}
    with HubServer(contents) as running:
        yield running


@pytest.fixture
def start(hub, tmp_path):
    """Starts the command with its endpoint at the hub; `models` is where files go."""

    def start(*arguments: object, models=tmp_path / "models", token=None, largest=None) -> subprocess.Popen:
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "COMFYUI"))}
        variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "TQDM_DISABLE": "1"}
        if token:
            variables["HF_TOKEN"] = token

        def limit():
            if largest:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

        where = ("--models", models) if models else ()
        command = [sys.executable, ROOT / "cli.py", "download", *arguments, *where]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(list(map(str, command)), env=variables, preexec_fn=limit, **pipes)

    start.models = tmp_path / "models"
    return start


def end(process: subprocess.Popen) -> tuple[int, str]:
    said, complained = process.communicate(timeout=60)
    assert "Traceback" not in complained, complained
    return process.returncode, said + complained


def place(models: Path, file) -> Path:
    return models / file.folder / file.name


def final_names(models: Path) -> set[str]:
    return {path.name for path in models.rglob("*") if path.is_file() and path.suffix != ".part"}


def is_complete(hub, models: Path, files=tuple(FILES)) -> bool:
    return all(place(models, each).read_bytes() == hub.files[f"{each.repo}/{each.path}"] for each in files)


def test_a_model_arrives_whole_and_a_second_start_gets_nothing(hub, start):
    hub.moved = True  # the names of repositories change, and the hub redirects
    hub.gated = "GatedRepo"
    code, said = end(start(MODEL, token=TOKEN))
    assert code == 0 and is_complete(hub, start.models), said
    assert f"> {TEMPLATES[MODEL]}." in said
    assert not list(start.models.rglob("*.part"))
    assert set(hub.tokens_at_store) == {None}, "the token is for the hub, not for where it redirects"
    transfers = len(hub.ranges)
    code, said = end(start(MODEL, token=TOKEN))
    assert code == 0 and len(hub.ranges) == transfers and said.count(" is here") == len(FILES)


def test_bf16_files_are_others(hub, start):
    code, said = end(start(MODEL, "--bf16"))
    assert code == 0 and is_complete(hub, start.models, files_of(MODEL, bf16=True)), said
    assert "TurboWan2.1-T2V-1.3B-480P.pth" in final_names(start.models)
    assert end(start("LingBot-World", "--bf16"))[1] == "download: LingBot-World has no bf16 files: leave --bf16 out.\n"


def test_a_killed_download_goes_on_where_it_was(hub, start):
    hub.stall_at = CHUNK
    process = start(MODEL)
    assert hub.is_stalled.wait(60)
    end_of_wait = time.monotonic() + 60
    while not any(part.stat().st_size for part in start.models.rglob("*.part")):
        assert time.monotonic() < end_of_wait, "nothing of the file is kept"
    process.kill()
    process.communicate()
    assert not final_names(start.models)
    (kept,) = (part.stat().st_size for part in start.models.rglob("*.part"))
    hub.stall_at, hub.cuts = None, [1000]  # the connection breaks once more
    code, said = end(start(MODEL))
    assert code == 0 and is_complete(hub, start.models), said
    assert hub.ranges.count(f"bytes={kept}-") == 2


def test_a_file_of_another_size_stays_and_is_named(hub, start):
    mine = place(start.models, FILES[0])
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    code, said = end(start(MODEL))
    assert code == 1 and "has 4 bytes" in said and "remove or rename it" in said
    assert mine.read_bytes() == b"mine" and not hub.ranges


TERMS = "accept them on that page and set HF_TOKEN"


@pytest.mark.parametrize(
    "wrong, token, says",
    [
        (dict(gated="GatedRepo"), None, TERMS),
        (dict(gated="GatedRepo"), "hf_other", TERMS),
        (dict(gated="RepoNotFound"), None, "set HF_TOKEN to a token of an account that may read it"),
        (dict(files={}), None, f"has no {FILES[0].path} any more: update the pack"),
        (dict(claimed_size=10**15), None, "3000000.0 GB are to come and"),
        (dict(damaged=True), None, "arrived damaged (its SHA-256 is not what the hub states) and was removed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_had_is_named_and_leaves_nothing(hub, start, wrong, token, says):
    vars(hub).update(wrong)
    code, said = end(start(MODEL, token=token))
    assert code == 1 and says in said
    assert not [path for path in start.models.rglob("*") if path.is_file()]
    assert hub.damaged or (not hub.ranges and len(said.splitlines()) == 1)


def test_a_disk_that_fills_up_keeps_what_arrived(hub, start):
    code, said = end(start(MODEL, largest=CHUNK + 1000))
    assert code == 1 and "is full: free space and run the same command again" in said
    assert not final_names(start.models)
    code, said = end(start(MODEL))
    assert code == 0 and is_complete(hub, start.models) and f"bytes={CHUNK + 1000}-" in hub.ranges


def test_a_disk_that_fails_is_named_with_its_error(tmp_path):
    file = files_of(MODEL)[0]
    with pytest.raises(TurboError, match=r"could not be written to .* \(\[Errno 5\] broken\): choose another folder"):
        with _disk_faults(file, tmp_path / file.name):
            raise OSError(errno.EIO, "broken")


def test_a_server_that_is_none_is_named(start, hub):
    hub.__exit__()
    code, said = end(start(MODEL))
    assert code == 1 and f"could not be had from {hub.url}/" in said

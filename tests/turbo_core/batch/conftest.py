"""What the batch tests share: the command, a live server's nodes, and jobs for them."""

import json

import pytest
from td_pack.tests.support import workflows
from td_pack.tests.support.jobs import empty, node
from td_pack.tests.support.workflows import TINY_FILES
from td_pack.tests.turbo_core.batch.scripted_server import WORKFLOW
from td_pack.turbo_core.batch.cli import main
from td_pack.turbo_core.batch.node_info import NodeInfos, parse_node_infos


@pytest.fixture
def batch(url, tmp_path, monkeypatch, capsys):
    """Runs the command in this process and in a folder with the scripted server's workflow, on the server at `url`, a
    fixture of each module; returns its exit code and keeps what it wrote as `.said`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))

    def run(*arguments: object, url: str = url) -> int:
        code = main([*map(str, arguments), "--out", str(run.out), "--server", url])
        captured = capsys.readouterr()
        run.said = captured.out + captured.err
        return code

    run.out = tmp_path / "out"
    return run


@pytest.fixture(scope="session")
def node_infos(server) -> NodeInfos:
    """Every node type of the live server."""
    answer = server.client.object_info()
    return parse_node_infos(answer, answer.keys())


@pytest.fixture
def t2v() -> dict:
    """The shipped text-to-video workflow on tiny files."""
    return tiny("TurboWan2.1-T2V-1.3B-480P")


@pytest.fixture
def i2v() -> dict:
    return tiny("TurboWan2.2-I2V-A14B-720P")


@pytest.fixture
def long() -> dict:
    """The long video of three segments."""
    return tiny("TurboWan2.2-I2V-A14B-Long-720P", length=9)


def tiny(name: str, length: int = 5) -> dict:
    return workflows.fit(workflows.load(name), models=TINY_FILES, width=64, height=64, length=length)


@pytest.fixture
def trouble(tmp_path):
    """Writes a workflow that saves a latent after a TestTrouble, and returns its path."""
    prompt = {
        "latent": empty(length=5),
        "trouble": node("TestTrouble", samples=["latent", 0], kind="none", once=""),
        "save": node("SaveLatent", samples=["trouble", 0], filename_prefix="trouble"),
    }
    path = tmp_path / "trouble.json"
    path.write_text(json.dumps(prompt))
    return path

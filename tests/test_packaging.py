"""What a person gets from the registry: the archive's files, the report of install.py, the commands that work without
tests."""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from td_pack.tests.support.server import ROOT
from td_pack.turbo_core import environment

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ARCHIVE_MB = 2


def archived() -> list[Path]:
    """What `comfy node pack` puts into the archive: the files git knows less those of .comfyignore."""

    def listed(*options: str) -> set[str]:
        command = ["git", "ls-files", *options]
        return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines())

    return [Path(name) for name in listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The archive unpacked where a user has it."""
    comfyui = tmp_path_factory.mktemp("installed") / "ComfyUI"
    pack = comfyui / "custom_nodes" / "turbodiffusion"
    for path in archived():
        (pack / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, pack / path)
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    return pack


def run(pack: Path, *command: str, **more: str) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"} | more
    return subprocess.run([sys.executable, *command], cwd=pack, env=variables, capture_output=True, text=True)


def test_the_archive_is_small_and_holds_no_tests_or_weights(installed):
    files = [path for path in installed.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < ARCHIVE_MB * 1e6
    names = {path.relative_to(installed).parts[0] for path in files}
    assert not names & {"tests", "docs", ".git", ".github", ".ci"}
    assert not [path for path in files if path.suffix in (".safetensors", ".pth", ".pt", ".mp4")]
    assert {"__init__.py", "cli.py", "install.py", "LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= names
    assert {"nodes", "workflows"} <= names


@pytest.mark.parametrize("options", [(), ("-S",)], ids=["ComfyUI's Python", "a Python without torch"])
def test_install_reports_and_changes_nothing(installed, options):
    before = sorted(installed.rglob("*"))
    done = [run(installed, "-B", *options, "install.py") for _ in range(2)]
    assert [each.returncode for each in done] == [0, 0] and done[0].stdout == done[1].stdout
    assert not done[0].stderr and len(done[0].stdout.splitlines()) <= 12
    assert "ComfyUI 0.30.0" in done[0].stdout
    assert sorted(installed.rglob("*")) == before
    if options:
        assert "torch: not installed" in done[0].stdout and "-m pip install triton" in done[0].stdout
    else:
        assert f"torch {importlib.metadata.version('torch')}, built for" in done[0].stdout


def test_install_reports_a_cuda_build_without_importing_it(installed, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError")
    (tmp_path / "torch" / "version.py").write_text("cuda: str | None = '12.8'\nhip: str | None = None\n")
    for package in ("torch-2.9.1", "triton-3.5.0"):
        name, version = package.split("-")
        (tmp_path / f"{package}.dist-info").mkdir()
        (tmp_path / f"{package}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    done = run(installed, "-B", "-S", "install.py", PYTHONPATH=str(tmp_path))
    lines = done.stdout.splitlines()
    assert {"TurboDiffusion: torch 2.9.1, built for CUDA 12.8", "TurboDiffusion: triton 3.5.0"} <= {*lines}


def test_old_hosts_are_named(tmp_path):
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.29.1"\n')
    assert "ComfyUI 0.29.1: too old, 0.30.0 or newer is needed" in environment.report(tmp_path)


def test_windows_is_told_the_triton_of_its_torch():
    command = environment.triton_command
    assert command((2, 9, 1), windows=True).endswith('-m pip install -U "triton-windows<3.6"')
    assert command((2, 10, 0), windows=True).endswith('"triton-windows<3.7"')
    assert command((2, 99, 0), windows=True).endswith('"triton-windows<3.7"')
    assert command((2, 9, 1), windows=False).endswith("-m pip install triton")


@pytest.mark.parametrize(
    "command, code, said",
    [
        ("cli.py convert nothing.pth out", 1, "convert: "),
        ("dev.py convert nothing.pth out", 1, "convert: "),
        ("dev.py test", 2, "dev.py: test needs the whole repository"),
    ],
)
def test_an_installed_copy_has_the_commands_of_users_and_says_what_it_lacks(installed, command, code, said):
    done = run(installed, "-B", *command.split())
    assert done.returncode == code and done.stderr.startswith(said)


def test_a_release_names_who_publishes_it(tmp_path):
    release = runpy.run_path(str(ROOT / ".github" / "release.py"))["main"]
    for name in ("pyproject.toml", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    tag = f"v{PROJECT['project']['version']}"
    with pytest.raises(ValueError, match=f"The tag is v0.0.1 and the version .*: tag {tag}"):
        release("v0.0.1", "https://github.com/a/b", "someone", tmp_path)
    with pytest.raises(ValueError, match="COMFY_PUBLISHER"):
        release(tag, "https://github.com/a/b", "", tmp_path)
    assert "### Added" in release(tag, "https://github.com/a/b", "someone", tmp_path)
    made = tomllib.loads((tmp_path / "pyproject.toml").read_text())
    assert made["project"]["urls"]["Repository"] == "https://github.com/a/b"
    shown = made["tool"]["comfy"]
    assert shown["PublisherId"] == "someone" and shown["DisplayName"] == "TurboDiffusion"
    for kind, size in (("Icon", (400, 400)), ("Banner", (1260, 540))):
        address, _, path = shown[kind].partition(f"/raw/{tag}/")
        with Image.open(ROOT / path) as image:
            assert address == "https://github.com/a/b" and image.size == size


def test_a_bug_report_asks_for_the_status():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    (status,) = (part for part in form["body"] if part["id"] == "status")
    assert "TurboDiffusion Status" in status["attributes"]["label"] and status["validations"]["required"]


def test_the_changelog_knows_the_version():
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == "Unreleased" and (PROJECT["project"]["version"] in versions or len(versions) == 1)

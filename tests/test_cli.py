"""`cli.py` and `dev.py` as a person starts them."""

import importlib
import subprocess
import sys

import pytest
from td_pack.tests.support.server import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "program, name, said",
    [
        ("cli.py", "batchh", "did you mean batch?"),
        ("cli.py", "zzz", "there are download, convert, batch."),
        ("dev.py", "tset", "did you mean test?"),
    ],
)
def test_an_unknown_command_is_named_with_the_nearest(program, name, said):
    done = run(program, name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{program}: there is no command '{name}'; {said}\n"


@pytest.mark.parametrize("command", [(), ("download", "--help"), ("convert", "--help"), ("batch", "--help")])
def test_help_has_examples(command):
    done = run("cli.py", *command)
    assert done.returncode == 0 and "\nexamples:\n  python cli.py " in done.stdout, done.stderr


@pytest.mark.parametrize("module", ["batch.options", "convert.cli", "download.cli"])
def test_every_option_has_help(module):
    parser = importlib.import_module(f"td_pack.turbo_core.{module}")._parser()
    assert all(action.help for action in parser._actions)


def test_a_python_without_the_packages_is_told_so():
    done = run("-S", "cli.py", "convert", "a", "b")
    assert done.returncode == 2 and "convert needs the package " in done.stderr

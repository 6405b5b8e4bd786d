"""`dev.py convert`: what it writes and says."""

import subprocess
import sys

import pytest
from td_pack.tests.support import checkpoints
from td_pack.tests.support.server import ROOT
from td_pack.turbo_core.checkpoint.identify import identify
from td_pack.turbo_core.checkpoint.read import read_safetensors
from td_pack.turbo_core.convert.cli import main


@pytest.fixture
def source(tmp_path):
    return checkpoints.write_pth(tmp_path / "source.pth", checkpoints.upstream_state_dict(1, layers=1))


def test_dev_py_converts(source, tmp_path):
    command = [sys.executable, str(ROOT / "dev.py"), "--here", "convert", source.name, "new", "--weights", "int8_block"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("new.safetensors: TurboWan T2V 1 layers of width 256 int8, 0.00 GB, in ")
    assert identify("new", *read_safetensors(tmp_path / "new.safetensors"))[0].int8


def test_an_error_is_one_sentence_and_the_exit_code(source, capsys):
    assert main([str(source), str(source.with_name("new"))]) == 0
    capsys.readouterr()
    assert main([str(source), str(source.with_name("new"))]) == 1
    assert capsys.readouterr().err == (
        "convert: new.safetensors exists already; set overwrite to replace it, or choose another output_name.\n"
    )
    assert main([str(source), str(source.with_name("new")), "--overwrite"]) == 0


def test_a_name_with_a_backslash_is_one_in_a_folder(source):
    assert main([str(source), str(source.parent) + "/folder\\new"]) == 0
    assert (source.parent / "folder" / "new.safetensors").is_file()


def test_merges_are_options(source, tmp_path, capsys):
    lora = checkpoints.write_safetensors(tmp_path / "l.safetensors", checkpoints.lora("kohya"))
    merge = [
        "--base",
        str(source),
        "--teacher",
        str(source),
        "--delta",
        "0.5",
        "--lora",
        str(lora),
        "--lora-strength",
        "2",
    ]
    assert main([str(source), str(tmp_path / "new"), *merge]) == 0
    report = capsys.readouterr().out
    assert "changed by 0.5 * (source.pth - source.pth)" in report
    assert "l.safetensors merged into 1 layers at strength 2." in report

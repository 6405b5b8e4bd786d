"""`cli.py convert`: what it writes and says."""

import pytest
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.convert.cli import main


@pytest.fixture
def source(tmp_path):
    return checkpoints.write_pth(tmp_path / "source.pth", checkpoints.upstream_state_dict(1, layers=1))


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
    merge = [f"--base={source}", f"--teacher={source}", "--delta=0.5", f"--lora={lora}", "--lora-strength=2"]
    assert main([str(source), str(tmp_path / "new"), *merge]) == 0
    report = capsys.readouterr().out
    assert "changed by 0.5 * (source.pth - source.pth)" in report
    assert "l.safetensors merged into 1 layers at strength 2." in report

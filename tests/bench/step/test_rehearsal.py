"""The benchmark of whole steps on tiny shapes: every part of it runs, and what it reports is what it measured."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from td_pack.tests.bench.step import bundle
from td_pack.tests.support.host import comfyui_path

ROOT = Path(__file__).resolve().parents[3]
INT8 = [f"int8 {kind}, {bits}-bit attention" for kind in ("tiles", "channels") for bits in (8, 16)]
JOB = ["text encoder", "image encode", "reading the experts", "load", "high", "switch", "low", "decode", "file"]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "dev.py"), "--here", "bench", "step", *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_rehearsal_runs_every_part(tmp_path):
    """On the part of ComfyUI that travels to a machine without a network."""
    with tarfile.open(bundle.write(tmp_path / "comfyui.tar.gz", Path(comfyui_path()))) as archive:
        archive.extractall(tmp_path, filter="data")
    files = ["--json", str(tmp_path / "s.json"), "--markdown", str(tmp_path / "s.md")]
    done = bench("--rehearse", *files, COMFYUI_PATH=str(tmp_path / "ComfyUI"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s.json").read_text())
    assert "mean nothing" in found["machine"]["machine"]
    assert "MISSED" not in done.stdout and "Targets" not in done.stdout
    assert (tmp_path / "s.md").read_text() == done.stdout[:-1]
    rows = {(row["phase"], row["operator"]): row for row in found["rows"]}
    for model in ("T2V tiny", "T2V tiny, again"):
        for name in INT8:
            row = rows[model, name]
            assert row["timing"] and row["ratios"]["stock"] > 0
            # On the CPU both run the same operators, in another order around the fused ones; a flipped code moves more.
            assert row["error"] < 1e-2
        operators = " ".join(name for phase, name in rows if phase == f"{model}: operators")
        assert "8-bit attention: turbodiffusion::int8_matmul" in operators and "best SDPA: aten::linear" in operators
        # The stock model and the int8 ones have the same weights: what is left is int8's rounding.
        assert 1e-3 < rows[model, "int8 tiles, dense attention"]["error"] < 6e-2
    job = {name: row for (phase, name), row in rows.items() if phase.startswith("I2V job")}
    assert [name for name in job if name in JOB] == JOB
    assert job["job, end to end"]["timing"]["ms"] >= sum(job[name]["timing"]["ms"] for name in JOB)


def test_without_time_it_stops_in_order(tmp_path):
    """The file is valid and the page says what is missing."""
    from td_pack.tests.bench import step

    page = step.run(torch.device("cpu"), 0.0, tmp_path / "s.json", tmp_path, ["job", "480p"], True)
    assert "Out of time before the end of: 480p, job." in page
    assert json.loads((tmp_path / "s.json").read_text())["rows"] == []


def test_without_a_gpu_it_says_so():
    done = bench()
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr and not done.stdout


@pytest.mark.parametrize(("seconds", "verdict"), [(2.9, "holds"), (3.1, "MISSED")])
def test_targets_are_judged_on_the_fastest_form(seconds, verdict):
    from td_pack.tests.bench.kernels.report import Row
    from td_pack.tests.bench.kernels.timing import single
    from td_pack.tests.bench.step import targets

    rows = [Row("T2V 14B 720p", name, "", single(1e3 * seconds + 100 * i)) for i, name in enumerate(INT8)]
    lines = targets.verdicts({"GPU": "NVIDIA H200"}, rows)
    assert verdict in lines[0]
    assert [f"{seconds + 0.1:.2f} s measured" in line for line in lines[1:]] == [True, False]


def test_a_target_without_its_measurement():
    from td_pack.tests.bench.step import targets

    assert targets.verdicts({"GPU": "NVIDIA H200"}, [])[0].endswith("not measured")


def test_a_package_that_is_missing_is_named(tmp_path):
    lines = [
        "comfyui-frontend-package==1",
        "torch",
        "no-such-package>=3.1",
        "",
        "#non essential dependencies:",
        "other",
    ]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    assert bundle.missing_packages(tmp_path) == ["no-such-package>=3.1"]

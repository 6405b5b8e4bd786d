"""The kernel benchmark without a GPU: every line of it runs, and what it reports is what it measured."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from td_pack.tests.bench import predict
from td_pack.tests.bench.kernels import attention, report, targets
from td_pack.tests.bench.kernels.timing import Timing

ROOT = Path(__file__).resolve().parents[3]


def bench(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in ("COMFYUI_PATH", "TRITON_INTERPRET")}
    command = [sys.executable, str(ROOT / "dev.py"), "bench", "kernels", *arguments]
    return subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True)


def test_a_rehearsal_runs_every_phase_without_comfyui(tmp_path):
    done = bench("--rehearse", "--json", str(tmp_path / "k.json"), "--markdown", str(tmp_path / "k.md"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "k.json").read_text())
    assert "mean nothing" in found["machine"]["machine"]
    phases = {row["phase"] for row in found["rows"]}
    assert phases == {"Compiling", "Attention", "Int8 linear", "One block"}
    wrong = [row["operator"] for row in found["rows"] if "wrong" in row["note"]]
    assert not wrong
    assert "Targets" not in done.stdout and "MISSED" not in done.stdout
    assert (tmp_path / "k.md").read_text() == done.stdout[:-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.json", "k.md"]


def test_without_a_gpu_it_says_so():
    done = bench(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "needs a GPU" in done.stderr and not done.stdout


def test_a_wrong_operator_is_not_timed(monkeypatch):
    """An operator that forgets the linear branch is far outside the tolerance."""
    import torch
    from td_pack.kernels.attention.triton.sla import sparse_linear_attention
    from td_pack.tests.bench.kernels.clocks import Clocks
    from td_pack.tests.bench.kernels.timing import Clock

    def broken(given, topk, pv):
        return sparse_linear_attention(*given[:3], None, None, topk=topk)

    monkeypatch.setattr(attention, "operator", broken)
    clock = Clock(torch.device("cpu"), 60, quick=True)
    rows = list(attention.measure(clock, Clocks(clock.device), shapes=[(130, 1)], ratios=(0.5,), width=64))
    assert [row.timing for row in rows if row.operator.startswith("sla")] == [None, None]


def test_what_is_timed_in_turns_alternates():
    import torch
    from td_pack.tests.bench.kernels.timing import REPETITIONS, Clock

    order = []
    clock = Clock(torch.device("cpu"), 0.2)
    times = clock.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, warm_ups=1)
    assert order == ["a", "b"] * (len(order) // 2) and len(order) // 2 > REPETITIONS
    assert times.keys() == {"a", "b"}


def test_clocks_are_those_of_the_samples_since():
    import torch
    from td_pack.tests.bench.kernels.clocks import Clocks

    with Clocks(torch.device("cpu")) as clocks:
        clocks._add("300, 80.5, 40")
        since = time.monotonic()
        for line in ("1980, 600, 60", "[N/A], 600, 60", "1410, 650, 64", "1965, 640.4, 63", "No devices were found"):
            clocks._add(line)
    assert clocks.since(since) == "1965 MHz, 640 W, 63 C"
    assert clocks.since(time.monotonic()) == ""


def test_the_page_of_predictions_is_current():
    """`python dev.py bench predict` writes it; the loops that it rests on are checked by test_aot.py."""
    assert predict.PAGE.read_text(encoding="utf-8") == predict.page()


def test_targets_are_judged_on_the_ratio_that_was_measured():
    def row(ratio: float) -> report.Row:
        row = report.Row(attention.PHASE, "sla 16-bit, top-k 0.1", "L=75600 H=40", Timing(10, 9, 11))
        row.ratios = {"sdpa": ratio}
        return row

    first = [targets.verdicts({"GPU": "NVIDIA H200"}, [row(ratio)])[0] for ratio in (5.01, 4.99)]
    assert ["holds" in line for line in first] == [True, False]
    assert "not measured" in targets.verdicts({"GPU": "NVIDIA H200"}, [])[0]

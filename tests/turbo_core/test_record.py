"""The record of a run: phases, passes, and the line that says it all."""

import pytest
from td_pack.turbo_core.read_ahead import Reading
from td_pack.turbo_core.record import RUN, Pass, RunRecord, timed


def test_phases_follow_each_other_without_gaps(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    record = RunRecord(began=0)
    began = record.enter("load")
    record.begin_pass("high", 0.99)["network"] += 1
    record.begin_pass("high", 0.93)["network"] += 1
    record.enter("switch")
    record.begin_pass("low", 0.85)
    record.enter(None)
    assert list(record.seconds) == ["load", "high", "switch", "low"]
    assert record.seconds["load"] == 1 and record.calls["high"]["network"] == 2
    assert [each.expert for each in record.passes] == ["high", "high", "low"]
    assert all(each.began < each.ended for each in record.passes)
    assert sum(record.seconds.values()) == record.passes[-1].ended - began


def test_its_lines_read_well():
    record = RunRecord(
        seconds={"text encode": 1.25, "load": 0.5, "high": 20.0, "switch": 0.04, "low": 19.0},
        passes=[Pass("high", 0.99, 0, 10.5), Pass("high", 0.93, 10.5, 20), Pass("low", 0.85, 20, 39)],
        read_ahead=[Reading("low.safetensors", size=14_500_000_000, wanted=14_500_000_000, read=14_500_000_000)],
        complete=True,
    )
    assert record.lines() == [
        "3 steps (2 high, 1 low)",
        "40.8 s: text encode 1.2 s, load 0.5 s, high 20.0 s (10.5 + 9.5), switch 0.0 s, low 19.0 s",
        "14.5 GB of 14.5 GB of low.safetensors read ahead",
    ]
    record.read_ahead = [Reading("low.safetensors", size=14_500_000_000, wanted=0)]
    assert record.lines()[2] == "0 MB of 14.5 GB of low.safetensors read ahead: No memory is free for it."
    stopped = RunRecord(seconds={"load": 1.0, "sample": 2.0}, passes=[Pass("sample", 0.99, 0, 2)])
    assert stopped.lines() == ["1 step, then it was interrupted or failed", "3.0 s: load 1.0 s, sample 2.0 s"]


def test_decoding_adds_to_the_record_of_the_latent_s_run():
    record = RunRecord()
    latent = {"samples": None, RUN: record}
    for _ in range(2):
        with timed(latent, "decode"):
            pass
    assert list(record.seconds) == ["decode"]
    with timed({"samples": None}, "decode"):  # a latent from elsewhere
        pass
    with pytest.raises(ValueError), timed(latent, "other"):
        raise ValueError
    assert "other" not in record.seconds

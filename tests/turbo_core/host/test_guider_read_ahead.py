"""The first expert's file is read until a run has it, the low expert's while the high expert still computes."""

import threading
import time

import psutil
import pytest
from comfy.patcher_extension import WrappersMP
from td_pack.tests.support.experts import Stop, image_text, sample, text
from td_pack.turbo_core.host import prefetch
from td_pack.turbo_core.host.prefetch import read_first_ahead


def waiting(model, done):
    """A clone whose every forward pass first waits until `done()`, and fails if that does not come."""
    clone = model.clone()

    def wait(executor, *args, **kwargs):
        deadline = time.monotonic() + 60
        while not done():
            assert time.monotonic() < deadline, "what the step waited for did not happen"
            time.sleep(0.001)
        return executor(*args, **kwargs)

    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "wait", wait)
    return clone


@pytest.mark.parametrize("boundary,high_steps", [(0.9, 2), (0.95, 1)])
def test_the_low_expert_is_read_while_the_last_high_step_runs(experts, boundary, high_steps):
    high, low = experts

    def read_or_early():
        record = high.model.last_run
        return len(record.passes) < high_steps or (record.read_ahead != [] and record.read_ahead[0].ended)

    sample(waiting(high, read_or_early), image_text(), low, boundary=boundary)
    record = high.model.last_run
    assert record is low.model.last_run
    assert [step.expert for step in record.passes] == ["high"] * high_steps + ["low"] * (4 - high_steps)
    last_high = record.passes[high_steps - 1]
    (reading,) = record.read_ahead
    assert last_high.began < reading.began < last_high.ended
    assert reading.read == reading.wanted == low.model.source.stat().st_size
    assert list(record.seconds) == ["load", "high", "switch", "low"]
    assert {name: calls["network"] for name, calls in record.calls.items()} == {
        "high": high_steps,
        "low": 4 - high_steps,
    }


@pytest.mark.parametrize("case", ["no low step", "low steps only", "one file", "one model"])
def test_nothing_is_read_ahead_that_the_run_does_not_come_to(experts, t2v, case):
    if case == "no low step":
        sample(experts[0], image_text(), experts[1], steps=2)
    elif case == "low steps only":
        sample(experts[0], image_text(), experts[1], boundary=1.0)
    elif case == "one file":
        sample(t2v, text(), t2v.clone())
    else:
        sample(t2v, text())
    model = t2v if case.startswith("one") else experts[0]
    assert model.model.last_run.passes and model.model.last_run.read_ahead == []


@pytest.fixture
def large(tmp_path):
    """A file with a hole: it takes nothing of the disk, and minutes to read."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    return path


def test_an_interrupt_while_the_low_expert_is_read_ends_the_reading(experts, large, monkeypatch):
    high, low = experts
    monkeypatch.setattr(low.model, "source", large)

    def not_begun() -> bool:
        readings = high.model.last_run.read_ahead
        if readings and readings[0].read:
            raise Stop
        return not readings

    threads, files = threading.enumerate(), psutil.Process().open_files()
    with pytest.raises(Stop):
        sample(waiting(high, not_begun), image_text(), low)
    (reading,) = high.model.last_run.read_ahead
    assert reading.cut == "It was stopped." and 0 < reading.read < reading.wanted
    assert threading.enumerate() == threads and psutil.Process().open_files() == files


class TestTheFirstExpert:
    """Its loader begins to read its file."""

    def test_is_read_and_the_run_says_so(self, experts):
        high, low = experts
        read_first_ahead(high)
        high.model.ahead._thread.join(60)
        sample(high, image_text(), low)
        record = high.model.last_run
        assert [reading.name for reading in record.read_ahead] == [high.model.source.name, low.model.source.name]
        assert record.read_ahead[0].read == record.read_ahead[0].wanted == high.model.source.stat().st_size
        assert record.read_ahead[0].ended < record.passes[0].began
        assert high.model.ahead is None  # a second run begins with a model that was used

    def test_is_read_no_longer_when_the_low_expert_is(self, experts, large, monkeypatch):
        high, low = experts
        monkeypatch.setattr(high.model, "source", large)
        read_first_ahead(high)
        sample(high, image_text(), low)
        first, second = high.model.last_run.read_ahead
        assert first.cut == "It was stopped." and first.ended <= second.began

    def test_is_not_read_beyond_free_memory(self, experts, monkeypatch):
        monkeypatch.setattr(prefetch, "room", lambda size, in_use: 1000 if in_use == 0 else size)
        read_first_ahead(experts[0])
        experts[0].model.stop_reading()
        assert experts[0].model.ahead.reading.wanted == 1000
        experts[0].model.ahead = None

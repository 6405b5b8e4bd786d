"""Kernels are compiled ahead of their first launch, in the background, and not twice."""

import json
import threading

import pytest
import torch
from td_pack.kernels import background, dispatch
from td_pack.kernels.ahead import listed
from td_pack.kernels.background import BackgroundCompiler, Progress
from td_pack.kernels.launch import Chip, compiling_for
from td_pack.tests.support.fresh import fresh
from td_pack.tests.support.kernels import row
from td_pack.turbo_core.attention import SLA
from td_pack.turbo_core.host import kernels_ahead
from td_pack.turbo_core.kernel_calls import Network, Packed4, decoder_calls, network_calls

CPU = torch.device("cpu")


@pytest.fixture
def compiler():
    compiler = BackgroundCompiler(CPU, Chip((8, 0)))
    yield compiler
    assert compiler.wait(60)


def test_a_call_that_fails_does_not_stop_the_others(compiler):
    done = []
    compiler.add([lambda: 1 / 0, lambda: done.append(threading.current_thread().name)])
    assert compiler.wait(60) and done == ["turbodiffusion-list-kernels"]
    compiler.add([lambda: done.append("again")])
    assert compiler.wait(60) and done[1:] == ["again"]


def test_waiting_is_for_all_that_was_asked_for(compiler):
    gate = threading.Event()
    compiler.add([gate.wait])
    compiler.add([lambda: None])
    assert not compiler.wait(0)
    gate.set()
    assert compiler.wait(60)


def test_a_process_that_ends_drops_what_has_not_begun(monkeypatch):
    monkeypatch.setattr(background, "_EXIT_SECONDS", 0)
    workers = background._Workers(1)
    begun, gate = threading.Event(), threading.Event()
    first = workers.submit(lambda: (begun.set(), gate.wait()))
    second = workers.submit(lambda: None)
    assert begun.wait(60)
    workers.stop()
    assert second.cancelled() and not first.done()
    gate.set()
    assert first.result(60)
    third = workers.submit(lambda: 3)
    assert third.result(60) == 3 and (workers.submitted, workers.finished) == (3, 2)


def test_a_self_test_waits_for_what_is_compiled_ahead(monkeypatch, availability, compiler):
    """Its own kernels are among that."""
    availability(triton=None)
    gpu = torch.device("cuda", 0)
    gate, order = threading.Event(), []
    compiler.add([lambda: (gate.wait(), order.append("compiled"))])
    monkeypatch.setattr(dispatch, "background_compiler", lambda device: compiler)
    monkeypatch.setattr(dispatch.self_test, "fault", lambda *_: order.append("tested"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    tester = threading.Thread(target=dispatch.unavailable, args=(row("triton"), "norm", "norm", gpu))
    tester.start()
    tester.join(0.2)
    assert tester.is_alive() and order == []
    gate.set()
    tester.join(60)
    assert order == ["compiled", "tested"]


def test_a_pass_waits_for_what_is_compiled_ahead(monkeypatch, compiler):
    gate, order = threading.Event(), []
    compiler.add([lambda: (gate.wait(), order.append("compiled"))])
    monkeypatch.setattr(kernels_ahead, "background_compiler", lambda device: compiler)
    kernels_ahead.wait_for_kernels(CPU)  # nothing is compiled for it
    gpu = torch.device("cuda", 0)
    waiting = threading.Thread(target=lambda: (kernels_ahead.wait_for_kernels(gpu), order.append("run")))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and order == []
    gate.set()
    waiting.join(60)
    assert order == ["compiled", "run"]


NETWORKS = {
    "tiles": {"activations": "group", "attention": frozenset({SLA()})},
    "tiles as upstream": {"activations": "block", "attention": frozenset({SLA(pv="fp16")}), "dtype": torch.float16},
    "by channel": {"activations": "row"},
    "bf16 with a LoRA": {"side_paths": True},
    "stock, untrained attention": {"attention": frozenset({SLA(linear=False)}), "turbo": False},
    "4 bits": {"four_bit": Packed4(64, 256, True)},
    "4 bits, plain scales, float32": {"four_bit": Packed4(64, 256, False), "dtype": torch.float32},
}


@pytest.mark.parametrize("name", [*NETWORKS, "decoder"])
def test_the_calls_of_every_kind_of_network_can_be_made(name):
    """In the background their errors would be lost. Triton's interpreter compiles nothing."""
    triton = row("triton")._replace(unavailable=lambda device: None)
    if name == "decoder":
        made = decoder_calls((96, 384), torch.bfloat16)
    else:
        made = network_calls(Network(1536, 8960, 12, **{"dtype": torch.bfloat16} | NETWORKS[name]), CPU)
    calls = listed(triton, CPU, made)
    with compiling_for(Chip((8, 0))):
        for call in calls:
            call()
    assert calls


# Norms and 4-bit weights of the 1.3B model, compiled for 8.0 in the background, then asked for by launches.
PROGRAM = """
load_pack()
import json, torch
from td_pack.kernels.background import BackgroundCompiler
from td_pack.kernels.launch import chip_at
from td_pack.tests.support.compiling import Compilations, as_if_on, compile_in_order, kernels_of
from td_pack.turbo_core.kernel_calls import Network, Packed4

with as_if_on(80) as gpu:
    counted = Compilations()
    calls = kernels_of(gpu, Network(1536, 8960, 12, torch.bfloat16, four_bit=Packed4(64, 256, True)))
    compiler = BackgroundCompiler(torch.device("cpu"), chip_at(gpu))
    compiler.add(calls)
    assert compiler.wait(300)
    ahead = len(counted.compiled), len(counted.read)
    compile_in_order(calls)
    print(json.dumps({"ahead": ahead, "all": (len(counted.compiled), len(counted.read)),
                      "threads": sorted(counted.threads), "progress": compiler.progress}))
"""


# The decoder's kernels, then the launches of decodes at other sizes: of a first frame, and of two frames of four.
DECODER = """
load_pack()
import json, torch
from td_pack.kernels.backends import BACKENDS
from td_pack.kernels.ahead import listed
from td_pack.kernels.norm.triton import rms_norm_silu_pad
from td_pack.tests.support.compiling import Compilations, as_if_on, compile_in_order
from td_pack.turbo_core.kernel_calls import decoder_calls

with as_if_on(80) as gpu:
    counted = Compilations()
    compile_in_order(listed(BACKENDS[0], gpu, decoder_calls([96], torch.bfloat16)))
    ahead = len(counted.all())
    def x(frames, *size):
        return torch.empty(1, frames, *size, 96, dtype=torch.bfloat16, device="meta").movedim(-1, 1)
    weight = torch.empty(96, dtype=torch.bfloat16, device="meta")
    compile_in_order([
        lambda: rms_norm_silu_pad(x(1, 480, 832), weight, None),
        lambda: rms_norm_silu_pad(x(4, 720, 1280)[:, :, 2:], weight, x(2, 720, 1280)),
        lambda: rms_norm_silu_pad(x(1, 16, 24), weight, x(2, 16, 24)),
    ])
    print(json.dumps([ahead, len(counted.compiled)]))
"""


def test_a_decode_of_another_size_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ahead, compiled = json.loads(fresh(DECODER, tmp_path))
    assert ahead == compiled == 2  # the self-test's, which is as wide, are the same


def test_a_second_start_compiles_nothing(tmp_path, monkeypatch):
    """Nor does a launch compile what was compiled ahead. The kernels of Wan 1.3B in NF4 without sparse attention."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    first, second = (json.loads(fresh(PROGRAM, tmp_path)) for _ in range(2))
    count = first["ahead"][0]
    assert count == 9 and first["all"] == [count, 0]
    assert second["ahead"] == second["all"] == [0, count]
    assert first["threads"] == second["threads"] == ["turbodiffusion-compile"]
    assert Progress(*first["progress"]) == Progress(count, count)

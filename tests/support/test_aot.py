"""The ahead-of-time compiler reports what is wrong with a kernel, and goes on after one that does not compile."""

from dataclasses import replace

import pytest
from td_pack.tests.support.aot import TARGETS, Build, Compiler, KernelCase

MULTIPLY = KernelCase(
    name="multiply",
    module="tests.support.aot_selftest",
    function="multiply",
    signature={"a": "*fp16", "b": "*fp16", "out": "*fp32", "length": "i32", "stride": "i32", "SIZE": "constexpr"},
    constexprs={"SIZE": 64},
    divisible=("stride",),
    targets={"sm_80": Build(4, 2, mma=r"HMMA\.16816\.F32", loop=96), "gfx1100": Build(4, 2, mma="v_wmma")},
)


@pytest.fixture(scope="module")
def compile_for():
    compiler = Compiler(workers=1)
    yield lambda case, target, **build: compiler.submit(
        replace(case, targets={target: replace(case.targets[target], **build)}), target
    ).result()
    compiler.close()


@pytest.mark.parametrize("target", MULTIPLY.targets)
def test_spills_in_the_loop_are_a_fault(compile_for, target):
    """256 x 256 accumulators on 4 warps are 512 registers a thread; 255 and 256 exist."""
    sound = compile_for(MULTIPLY, target)
    assert not sound.faults(MULTIPLY.targets[target], target)
    report = compile_for(MULTIPLY, target, constexprs={"SIZE": 256})
    assert "spill" in report.faults(Build(4, 2), target)[0]


def test_other_faults_are_named(compile_for):
    report = compile_for(MULTIPLY, "sm_80")
    limit = TARGETS["sm_80"].shared_limit
    assert "QMMA" in report.faults(Build(4, 2, mma="QMMA"), "sm_80")[0]
    assert "shared" in replace(report, shared=limit + 1).faults(Build(4, 2), "sm_80")[0]
    assert not replace(report, shared=limit).faults(Build(4, 2), "sm_80")
    for recorded in (report.loop_instructions * 0.9, report.loop_instructions * 1.12):
        assert "recorded" in report.faults(Build(4, 2, loop=int(recorded)), "sm_80")[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"signature": {"a": "*fp16"}}, "the kernel takes"),
        ({"divisible": ("length",)}, "not specialized"),
        ({"function": "die"}, "exit code 3"),
    ],
)
def test_a_case_that_fails_says_why_and_the_next_one_compiles(compile_for, change, message):
    assert message in compile_for(replace(MULTIPLY, **change), "sm_80")
    assert not isinstance(compile_for(MULTIPLY, "sm_80"), str)

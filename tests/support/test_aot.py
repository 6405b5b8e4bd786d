"""The ahead-of-time compiler reports what is wrong with a kernel, and survives kernels that do not compile."""

from dataclasses import replace

import pytest
from td_pack.tests.support.aot import RDNA, TARGETS, Build, Compiler, KernelCase

MULTIPLY = KernelCase(
    name="multiply",
    module="tests.support.aot_selftest",
    function="multiply",
    signature={"a": "*fp16", "b": "*fp16", "out": "*fp32", "length": "i32", "stride": "i32", "SIZE": "constexpr"},
    constexprs={"SIZE": 64},
    divisible=("stride",),
    targets={
        "sm_80": Build(4, 2, mma=r"HMMA\.16816\.F32", loop=96),
        "sm_90": Build(4, 2, mma=r"HGMMA\.64x64x16\.F32", loop=79),
        "sm_100": Build(4, 2, mma="UTCHMMA", loop=107),
        "gfx942": Build(4, 2, mma="v_mfma"),
        **dict.fromkeys(RDNA, Build(4, 2, mma="v_wmma")),
    },
)


@pytest.fixture(scope="module")
def compile_for():
    compiler = Compiler(workers=1)
    yield lambda case, target, **build: compiler.submit(
        replace(case, targets={target: replace(case.targets[target], **build)}), target
    ).result()
    compiler.close()


@pytest.mark.parametrize("target", MULTIPLY.targets)
def test_sound_kernel_has_no_faults(compile_for, target):
    report = compile_for(MULTIPLY, target)
    assert not report.faults(MULTIPLY.targets[target], target)
    assert report.registers and report.shared and not report.spill_bytes


@pytest.mark.parametrize("target", ["sm_80", "gfx1100"])
def test_spills_in_the_loop_are_a_fault(compile_for, target):
    """256 x 256 accumulators on 4 warps are 512 registers a thread; 255 and 256 exist."""
    report = compile_for(MULTIPLY, target, constexprs={"SIZE": 256})
    assert report.spill_bytes > 0 and report.loop_spills > 0
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
        ({"function": "absent"}, "AttributeError"),
        ({"constexprs": {"SIZE": 63}}, "CompilationError"),
    ],
)
def test_case_that_cannot_compile_says_why_and_the_next_one_compiles(compile_for, change, message):
    assert message in compile_for(replace(MULTIPLY, **change), "sm_80")
    assert not isinstance(compile_for(MULTIPLY, "sm_80"), str)


def test_compiler_that_dies_is_reported_and_replaced(compile_for):
    dying = replace(MULTIPLY, module="tests.support.aot_selftest", function="die")
    assert "exit code 3" in compile_for(dying, "sm_80")
    assert not isinstance(compile_for(MULTIPLY, "sm_80"), str)

"""Every kernel compiles for every GPU it is meant for, without spills and with the tensor cores, on a machine with
none.

The cases are in aot_cases/, one file an operator. `TURBODIFFUSION_FULL_AOT=1` adds the targets in `EXTRA`;
`TURBODIFFUSION_AOT_TRITON=3.7.1` compiles with that version, whose loops may be shorter than recorded, not longer."""

import os
from dataclasses import replace
from functools import partial

import pytest
from td_pack.kernels.attention.triton import kv_prepare, sage, sla
from td_pack.kernels.int8.triton import linear
from td_pack.tests.support.aot import RDNA, TARGETS, Build, Compiler
from td_pack.tests.support.kernels import aot_cases

CASES = aot_cases()
EXTRA = {
    "sm_86": "differs from sm_80 and sm_89 in few kernels",
    "gfx942": "AMD is best effort",
    **dict.fromkeys(RDNA, "AMD is best effort"),
}
FULL = os.environ.get("TURBODIFFUSION_FULL_AOT") == "1"


def _items() -> list:
    items = []
    for case in CASES:
        for target in case.targets:
            skip = pytest.mark.skipif(
                target in EXTRA and not FULL,
                reason=f"{EXTRA.get(target)}: TURBODIFFUSION_FULL_AOT=1 compiles it too",
            )
            items.append(pytest.param(case, target, id=f"{case.name}-{target}", marks=skip))
    return items


@pytest.fixture(scope="module")
def compiler():
    compiler = Compiler()
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def reports(request, compiler):
    """Everything that this run compiles, submitted at once so that both workers are busy."""
    chosen = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path
        and "reports" in getattr(item, "fixturenames", ())
        and not any(mark.args[0] for mark in item.iter_markers("skipif"))
    ]
    return {
        (id(params["case"]), params["target"]): compiler.submit(params["case"], params["target"]) for params in chosen
    }


@pytest.mark.parametrize("case, target", _items())
def test_compiles_as_recorded(reports, case, target):
    report = reports[id(case), target].result()
    assert not isinstance(report, str), report
    print(report)
    assert not report.faults(case.targets[target], target)


@pytest.mark.parametrize("target, products", [("sm_80", "IMMA"), ("gfx1100", "wmma_i32")])
def test_faults_are_seen(compiler, target, products):
    """128 x 128 sums on one warp are 512 registers a thread; 255 and 256 exist."""
    case = next(each for each in CASES if each.name == "int8_matmul_block")
    one_warp = replace(case, targets={target: Build(1, 1, constexprs={"MAGIC": False, "BLOCK_K": 32})})
    report = compiler.submit(one_warp, target).result()
    assert "spill" in report.faults(Build(1, 1, products), target)[0]
    expected = Build(1, 1, "none", loop=int(report.loop_instructions * 0.9))
    assert len(replace(report, shared=1 << 20).faults(expected, target)) == 4
    lacking = replace(one_warp, signature={"p_x": "*i8"})
    assert "the kernel takes" in compiler.submit(lacking, target).result()


def _int8_config(case, target):
    rows = 512 if case.constexprs["BLOCK_N"] == 64 else 1 << 15
    square, channel = "p_y_scale" in case.signature, case.constexprs["BY_CHANNEL"]
    return linear.launch_config(TARGETS[target].chip, rows, square, channel)


def _attention_config(module, case, target):
    return module.launch_config(TARGETS[target].chip, case.constexprs["D"])


LAUNCHED = {
    "_matmul_kernel": _int8_config,
    "_attention_kernel": partial(_attention_config, sla),
    "_sage_kernel": partial(_attention_config, sage),
    "_kv_partial_kernel": lambda case, target: kv_prepare.launch_config(case.constexprs["D"], target in RDNA),
}


@pytest.mark.parametrize("function", LAUNCHED)
def test_the_compiled_cases_are_what_is_launched(function):
    """aot_cases/ holds launch configs of its own, being data; they must be those of the launchers."""
    cases = [case for case in CASES if case.function == function]
    assert cases
    for case in cases:
        for target, build in case.targets.items():
            compiled = {**case.constexprs, **build.constexprs}
            compiled |= {"num_warps": build.num_warps, "num_stages": build.num_stages}
            assert LAUNCHED[function](case, target).items() <= compiled.items(), (case.name, target)

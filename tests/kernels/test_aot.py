"""Every kernel compiles for every GPU it is meant for, without spills and with the tensor cores, on a machine with
none.

The cases are in aot_cases/, one file an operator. `TURBODIFFUSION_FULL_AOT=1` adds the targets in `EXTRA`;
`TURBODIFFUSION_AOT_TRITON=3.7.1` compiles with that version, whose loops may be shorter than recorded, not longer."""

import importlib
import os
from pathlib import Path

import pytest
from td_pack.tests.support.aot import RDNA

EXTRA = {
    "sm_86": "differs from sm_80 and sm_89 in few kernels",
    "gfx942": "AMD is best effort",
    **dict.fromkeys(RDNA, "AMD is best effort"),
}
FULL = os.environ.get("TURBODIFFUSION_FULL_AOT") == "1"


def _items() -> list:
    items = []
    for path in sorted(Path(__file__).with_name("aot_cases").glob("[!_]*.py")):
        for case in importlib.import_module(f"td_pack.tests.kernels.aot_cases.{path.stem}").CASES:
            for target in case.targets:
                skip = pytest.mark.skipif(
                    target in EXTRA and not FULL,
                    reason=f"{EXTRA.get(target)}: TURBODIFFUSION_FULL_AOT=1 compiles it too",
                )
                items.append(pytest.param(case, target, id=f"{case.name}-{target}", marks=skip))
    return items


@pytest.fixture(scope="module")
def reports(request, compiler):
    """Everything that this run compiles, submitted at once so that both workers are busy."""
    chosen = [
        item.callspec.params
        for item in request.session.items
        if item.path == request.path
        and "target" in getattr(item, "fixturenames", ())
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

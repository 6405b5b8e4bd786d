"""The compiled kernels, executed in the emulator, against their definitions: see cases.py for the shapes and the
bounds.

A plain run takes the quick cases for compute capability 8.0. `--simulated 90` takes every case for 9.0, `--simulated
all` every case for each capability, and then writes docs/benchmarks/simulated.md."""

import pytest

from . import report
from .cases import ALL, CASES
from .worker import Worker

# Hazards (shared.py) that are known, by kernel and compute capability. `_kv_partial_kernel` with its two stages has one
# buffer for v: Triton waits for the first quarter of the product over a block of v before it fetches the next block to
# the same place.
KNOWN_HAZARDS = {("_kv_partial_kernel", 90)}


def _chosen(option: str) -> list[tuple[int, str]]:
    """(compute capability, case) for a value of --simulated."""
    if option == "quick":
        return [(80, name) for name, case in CASES.items() if case.quick and 80 in case.capabilities]
    capabilities = ALL if option == "all" else (int(option),)
    return [(c, name) for c in capabilities for name, case in CASES.items() if c in case.capabilities]


def pytest_generate_tests(metafunc):
    if "capability" in metafunc.fixturenames:
        chosen = _chosen(metafunc.config.getoption("--simulated"))
        ids = [f"sm_{capability}-{name.replace(' ', '-')}" for capability, name in chosen]
        metafunc.parametrize(("capability", "name"), chosen, ids=ids)


@pytest.fixture(scope="module")
def results(request):
    """What ran, by (compute capability, case). A complete run of all of them is written down."""
    found = {}
    yield found
    complete = set(_chosen("all")) == found.keys()
    if request.config.getoption("--simulated") == "all" and complete:
        report.write(found)


@pytest.fixture(scope="module")
def workers():
    """A process for each compute capability, started when its first case comes."""
    running: dict[int, Worker] = {}
    yield running
    for worker in running.values():
        worker.close()


def test_compiled_code_in_the_emulator(workers, results, capability, name):
    if capability not in workers:
        workers[capability] = Worker(capability)
    result = workers[capability].run(name)
    assert result.error is None, result.error
    assert {(kernel, capability) for kernel, _ in result.hazards} <= KNOWN_HAZARDS, result.hazards
    print(f"{result.seconds:.1f} s of CPU, {', '.join(result.launches)}: {result.checks}")
    assert result.checks and all(check.error <= check.bound for check in result.checks), result.checks
    results[capability, name] = result

"""The emulator is tested by defects: PTX with a barrier or wait removed, operands swapped or an address shifted must be
noticed, as a fault or as a wrong result. Those that are not are listed with the reason."""

from collections import Counter

from .worker import Result, Worker

EVERY = ("barrier removed", "cp.async waited for one group less", "wgmma waited for one group less", "fence removed")
STEP = (
    16  # of the many loads, stores and products of the int8 product every 16th is changed; attention's masks hide some
)

# (compute capability, case, kernel): the kinds of which some change nothing, how many, and why.
UNNOTICED: dict[tuple[int, str, str], dict[str, tuple[int, str]]] = {
    (80, "int8_matmul-none-140x136x384-block-bf16", "_matmul_kernel"): {
        "barrier removed": (2, "between the first copies, before anything is read"),
    },
    (80, "attention-d64-130-keys-70-batch-2", "_attention_kernel"): {
        "barrier removed": (
            2,
            "between the first copies, and after the loop, whose own last barrier precedes the next store",
        ),
    },
}


def noticed(result: Result, sound: Result) -> bool:
    """A fault, a hazard that the sound kernel has not, or an error above its bound (or NaN)."""
    wrong = any(not check.error <= check.bound for check in result.checks)
    return result.error is not None or result.hazards != sound.hazards or wrong


def pytest_generate_tests(metafunc):
    places = list(UNNOTICED)
    metafunc.parametrize(("capability", "name", "kernel"), places, ids=[f"sm_{c}-{kernel}" for c, _, kernel in places])


def test_defects_in_compiled_code_are_noticed(capability, name, kernel):
    worker = Worker(capability)
    try:
        sound = worker.run(name)
        assert sound.error is None and not noticed(sound, sound), sound
        mine = [m for m in sound.mutations if m.kernel == kernel]
        defects = [m for m in mine if m.kind in EVERY or (kernel == "_matmul_kernel" and m.number % STEP == 3)]
        missed = [m for m in defects if not noticed(worker.run(name, m), sound)]
    finally:
        worker.close()
    print(f"{len(defects)} defects, {len(missed)} not noticed: {missed}")
    assert defects and Counter(m.kind for m in missed) == {
        kind: count for kind, (count, _) in UNNOTICED[capability, name, kernel].items()
    }, missed

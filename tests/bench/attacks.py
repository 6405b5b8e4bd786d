"""`dev.py bench attacks`: runs the tests that attack the pack, and writes docs/benchmarks/attacks.md: how many attacks
of each kind there are, generated ones included, and how many hurt."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "benchmarks" / "attacks.md"
CHECKPOINT, CONVERT, BATCH, NODES = (
    f"tests/{name}" for name in ("turbo_core/checkpoint", "turbo_core/convert", "turbo_core/batch", "nodes")
)
# What is attacked, and the files of tests that do it.
ATTACKED = {
    "model files: generated mutations": (f"{CHECKPOINT}/test_fuzz.py",),
    "model files: named faults": tuple(
        f"{CHECKPOINT}/test_{name}.py"
        for name in ("archive", "metadata", "read", "shards", "packed", "identify", "identify_refusals")
    ),
    "LoRA files": ("tests/turbo_core/test_lora.py",),
    "conversions: damage, kills, full disks": (f"{CONVERT}/test_damage.py", f"{CONVERT}/test_output.py"),
    "cached prompts": ("tests/turbo_core/test_text_cache.py",),
    "prompts to a live server: generated": (f"{NODES}/test_fuzz.py",),
    "prompts to a live server: named faults": (f"{NODES}/test_refusals.py",),
    "two servers on one user folder": (f"{NODES}/test_two_servers.py",),
    "server answers, workflows and tables: generated": (f"{BATCH}/test_fuzz.py",),
    "servers that misbehave, to the batch": (f"{BATCH}/test_misbehaving_servers.py",),
    "servers that misbehave, to the example client": ("tests/docs/test_api_client.py",),
    "tables, plans, command lines": tuple(f"{BATCH}/test_{name}.py" for name in ("plan", "table", "cli")),
    "batches: kills, losses, full disks, clocks": (f"{BATCH}/test_dispatch.py", f"{BATCH}/test_results.py"),
}
# Runs pytest with a plugin of this file, which is not importable there under the name that it has here.
RUN = "import pytest, runpy, sys; plugin = runpy.run_path(sys.argv[1])['Counted'](sys.argv[2]); \
sys.exit(pytest.main(sys.argv[3:], [plugin]))"


class Counted:
    """A pytest plugin that writes, by file, how many tests ran, failed and were skipped, their seconds, and how many
    examples hypothesis made."""

    def __init__(self, path: str):
        self._path, self._counts, self._file = Path(path), {}, ""

    def pytest_configure(self, config) -> None:
        from hypothesis.internal.observability import add_observability_callback

        add_observability_callback(self._example)

    def _example(self, case) -> None:
        if case.type == "test_case" and case.status != "gave_up":
            self._counts[self._file]["generated"] += 1

    def pytest_runtest_setup(self, item) -> None:
        self._file = item.nodeid.partition("::")[0]
        self._counts.setdefault(self._file, Counter())

    def pytest_runtest_logreport(self, report) -> None:
        counts = self._counts[report.nodeid.partition("::")[0]]
        counts["seconds"] += report.duration
        counts["cases"] += report.when == "call" and not report.skipped
        counts["failed"] += report.failed

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(self._counts))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench attacks", description=__doc__)
    parser.add_argument("--long", action="store_true", help="the fuzzers go on for hours")
    options = parser.parse_args(arguments)
    files = [file for listed in ATTACKED.values() for file in listed]
    with tempfile.TemporaryDirectory() as folder:
        counted = Path(folder) / "counts.json"
        command = [sys.executable, "-c", RUN, __file__, str(counted), "-q", *files, *["--long"] * options.long]
        code = subprocess.call(command, cwd=ROOT)
        counts = json.loads(counted.read_text())
    TARGET.write_text(report(counts), encoding="utf-8")
    print(f"written: {TARGET.relative_to(ROOT)}")
    return code


def report(counts: dict[str, dict[str, float]]) -> str:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    lines = [
        "# Attacks",
        "",
        "Written by `python dev.py bench attacks`, which runs these tests as CI does; [security.md](../security.md)",
        "says what is promised. A case is a test with its arguments, most of them one broken file, prompt, answer or",
        "table; generated ones are made by seeded fuzzers from valid ones (`--long` makes 100 to 1,000 times as many).",
        "Failed is what hurt: a Python error, a hang, a loss.",
        "",
        "| attacked | cases | generated | failed | seconds |",
        "|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for what, files in ATTACKED.items():
        found: Counter[str] = sum((Counter(counts.get(file, {})) for file in files), Counter())
        total += found
        lines.append(_row(what, found))
    load = os.getloadavg()[0]
    machine = f"{platform.system()}, {os.cpu_count()} cores, load {load:.0f} at the end, commit {commit.strip()}"
    return "\n".join([*lines, _row("all", total), "", machine + ".", ""])


def _row(what: str, found: Counter[str]) -> str:
    numbers = [f"{found[name]:,.0f}" for name in ("cases", "generated", "failed", "seconds")]
    return f"| {what} | {' | '.join(numbers)} |"

"""`dev.py bench weight`: lines of tests for each line of product, by folder; without benchmarks, toy world and
simulated GPU."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
APART = ("tests/bench/", "tests/tiny/", "tests/simulated_gpu/", "docs/")


def main(arguments: list[str]) -> int:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines: dict[str, list[int]] = {}
    for name in listed.splitlines():
        if name.startswith(APART):
            continue
        is_test = name.startswith("tests/")
        parts = Path(name.removeprefix("tests/")).parts
        folder = (
            "/".join(parts[:2]) if parts[0] == "turbo_core" and len(parts) > 2 else parts[0] if len(parts) > 1 else "."
        )
        lines.setdefault(folder, [0, 0])[is_test] += len((ROOT / name).read_bytes().splitlines())
    print("| folder | product | tests | tests / product |\n|---|---|---|---|")
    for folder, (product, tests) in [
        *sorted(lines.items()),
        ("all", list(map(sum, zip(*lines.values(), strict=True)))),
    ]:
        print(f"| {folder} | {product} | {tests} | {f'{tests / product:.3f}' if product else ''} |")
    return 0

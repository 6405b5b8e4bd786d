"""`dev.py bench mutants`: how many of a fixed set of small defects in the product the tests catch.

Ten kinds of defect, `--per-kind` places each, chosen by a hash of the statement they are in, so that moving a file or a
line does not change the choice. Each is written into a copy of the tree, where the test files run that belong to the
mutated file: those of the same top-level folder, of tests/ itself and of tests/docs that name the mutated function or
its module. A run that fails or does not end has caught the defect."""

import argparse
import ast
import copy
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("kernels", "nodes", "turbo_core")
TIMEOUT = 1500  # seconds, for several test files beside others on a busy machine
_SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
}  # fmt: skip


class Mutant(NamedTuple):
    kind: str
    file: str  # relative to the tree, with forward slashes
    function: str  # the innermost enclosing function or class
    line: int
    source: str  # the whole file with the defect
    statement: str


def _compare(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
        node.ops[0] = _SWAPS[type(node.ops[0])]()
        return node
    return None


def _arithmetic(node: ast.AST) -> ast.AST | None:
    if (
        isinstance(node, ast.BinOp)
        and type(node.op) in _SWAPS
        and not isinstance(node.left, (ast.Constant, ast.JoinedStr))
    ):
        node.op = _SWAPS[type(node.op)]()
        return node
    return None


def _number(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        node.value += 1
        return node
    return None


def _boolean(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return node
    return None


def _condition(node: ast.AST) -> ast.AST | None:
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return node
    return None


def _returned(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Return) and node.value is not None:
        node.value = ast.Constant(None)
        return node
    return None


def _raised(node: ast.AST) -> ast.AST | None:
    return ast.Pass() if isinstance(node, ast.Raise) and node.exc is not None else None


def _keyword(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Call) and node.keywords and node.keywords[-1].arg is not None:
        node.keywords.pop()
        return node
    return None


def _text(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value:
        node.value = f"x{node.value}"
        return node
    return None


def _effect(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return ast.Pass()
    return None


KINDS: dict[str, Callable[[ast.AST], ast.AST | None]] = {
    "comparison swapped": _compare,
    "arithmetic swapped": _arithmetic,
    "number plus one": _number,
    "and for or": _boolean,
    "condition negated": _condition,
    "None returned": _returned,
    "raise removed": _raised,
    "keyword dropped": _keyword,
    "text changed": _text,
    "effect removed": _effect,
}


class _Place(NamedTuple):
    node: ast.AST
    parent: ast.AST
    field: str
    index: int | None
    function: str
    statement: str


def _places(tree: ast.Module) -> Iterator[_Place]:
    """Every node within a function, but for docstrings, annotations and decorators."""

    def walk(parent: ast.AST, function: str, statement: str) -> Iterator[_Place]:
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            nodes = value if isinstance(value, list) else [value]
            for index, node in enumerate(nodes):
                if not isinstance(node, ast.AST) or _is_docstring(node):
                    continue
                inner = node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
                text = ast.unparse(node) if isinstance(node, ast.stmt) else statement
                if inner:
                    yield _Place(node, parent, field, index if isinstance(value, list) else None, inner, text)
                yield from walk(node, inner, text)

    yield from walk(tree, "", "")


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def candidates(tree: Path) -> Iterator[tuple[str, str, Callable[[], Mutant]]]:
    """(kind, key, make) for each place and kind; `key` orders the places of a kind."""
    for path in sorted(file for folder in PRODUCT for file in (tree / folder).rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for number, place in enumerate(_places(module)):
            for kind, change in KINDS.items():
                if change(copy.deepcopy(place.node)) is None:
                    continue
                key = hashlib.sha256(f"{kind}|{place.statement}|{ast.dump(place.node)}".encode()).hexdigest()
                yield kind, key, lambda path=path, number=number, kind=kind: _make(tree, path, number, kind)


def _make(tree: Path, path: Path, number: int, kind: str) -> Mutant:
    module = ast.parse(path.read_text(encoding="utf-8"))
    place = next(each for i, each in enumerate(_places(module)) if i == number)
    changed = ast.copy_location(KINDS[kind](copy.deepcopy(place.node)), place.node)
    if place.index is None:
        setattr(place.parent, place.field, changed)
    else:
        getattr(place.parent, place.field)[place.index] = changed
    source = ast.unparse(ast.fix_missing_locations(module)) + "\n"
    file = path.relative_to(tree).as_posix()
    return Mutant(kind, file, place.function, place.node.lineno, source, place.statement.splitlines()[0][:90])


def choose(tree: Path, per_kind: int) -> list[Mutant]:
    found: dict[str, dict[str, Callable[[], Mutant]]] = {kind: {} for kind in KINDS}
    for kind, key, make in candidates(tree):
        found[kind].setdefault(key, make)
    return [make() for makes in found.values() for _, make in sorted(makes.items())[:per_kind]]


def tests_for(tree: Path, mutant: Mutant) -> list[str]:
    """The test files that name the mutant's function or its module (of an operator's, its folder), or all files of its
    top-level folder; nearest first."""
    path = Path(mutant.file)
    names = {mutant.function.strip("_"), path.stem if path.stem != "__init__" else path.parent.name}
    if len(path.parts) > 2 and path.parts[0] == "kernels":
        names.add(path.parts[1])  # "format" and "reference" are named by no test
    pattern = re.compile(r"(?<![a-z0-9])(" + "|".join(map(re.escape, sorted(names))) + r")(?![a-z0-9])")
    tests = tree / "tests"
    files = sorted((tests / path.parts[0]).rglob("test_*.py"))
    general = [*tests.glob("test_*.py"), *(tests / "docs").glob("test_*.py")]
    general.remove(tests / "test_structure.py")  # its rules are for files as they are written, not for unparsed ones
    naming = [file for file in files + sorted(general) if pattern.search(file.read_text(encoding="utf-8"))]
    beside = tree / "tests" / path.parent
    nearest = sorted(naming or files, key=lambda file: (path.stem not in file.stem, file.parent != beside))
    return [file.relative_to(tree).as_posix() for file in nearest]


def run(tree: Path, mutant: Mutant) -> str:
    """ "caught", "timeout" or "survived"; the tree is as before afterwards."""
    path = tree / mutant.file
    original = path.read_bytes()
    path.write_text(mutant.source, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *tests_for(tree, mutant),
    ]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return "timeout"
    finally:
        path.write_bytes(original)
    return "caught" if done.returncode else "survived"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dev.py bench mutants", description=__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to mutate a copy of (default: this one)")
    parser.add_argument("--per-kind", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write each mutant and what became of it to this file")
    parser.add_argument("--list", action="store_true", help="name the mutants and their test files, run nothing")
    options = parser.parse_args(arguments)
    mutants = choose(options.tree, options.per_kind)
    if options.list:
        for mutant in mutants:
            print(
                f"{mutant.kind:18} {mutant.file}:{mutant.line} {mutant.statement} | "
                f"{len(tests_for(options.tree, mutant))}"
            )
        return 0
    with tempfile.TemporaryDirectory(prefix="turbodiffusion-mutants-") as folder:
        trees: SimpleQueue[Path] = SimpleQueue()
        for i in range(options.jobs):
            copied = Path(folder, str(i))
            shutil.copytree(options.tree, copied, ignore=shutil.ignore_patterns(".git", "__pycache__"))
            for command in (["git", "init", "--quiet"], ["git", "add", "--all"]):  # a test asks which files git knows
                subprocess.run(command, cwd=copied, check=True)
            trees.put(copied)

        def one(mutant: Mutant) -> dict:
            tree = trees.get()
            try:
                result = run(tree, mutant)
            finally:
                trees.put(tree)
            print(f"{result:8} {mutant.kind:18} {mutant.file}:{mutant.line} {mutant.statement}", flush=True)
            return {**mutant._asdict(), "source": None, "result": result}

        with ThreadPoolExecutor(options.jobs) as pool:
            rows = list(pool.map(one, mutants))
    print("\n| kind | caught | of |\n|---|---|---|")
    for kind in KINDS:
        results = [row["result"] for row in rows if row["kind"] == kind]
        print(f"| {kind} | {len(results) - results.count('survived')} | {len(results)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0

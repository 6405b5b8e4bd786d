"""Rows to jobs: values put into the workflow, everything checked against the servers, every fault kept with its row."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import schema
from .check import Checker, named
from .faults import Doubles, Faults
from .files import is_file
from .job import UPLOADS, Job, job_id
from .node_info import NodeInfos
from .table import Row, RowFault
from .text import brief
from .workflow import Prompt, Target, Workflow, specs

_SEED_LIMIT = 1 << 64


class Interrupted(Exception):
    """Planning was asked to stop."""


class _Draft:
    """A copy of the base prompt that shares the nodes which a row leaves as they are."""

    def __init__(self, base: "_Base"):
        self.base, self.prompt = base, dict(base.workflow.prompt)
        self.changed: set[str] = set()

    def inputs(self, key: str) -> dict[str, Any]:
        """The inputs of a node, to be changed."""
        if key not in self.changed:
            self.changed.add(key)
            self.prompt[key] = self.prompt[key] | {"inputs": dict(self.prompt[key]["inputs"])}
        return self.prompt[key]["inputs"]

    def copy(self) -> "_Draft":
        """Another draft of the same values; changing it leaves this one alone."""
        copied = _Draft(self.base)
        copied.prompt = dict(self.prompt)
        return copied


class _Base:
    """A workflow before a row's values, checked once."""

    def __init__(self, workflow: Workflow, infos: Mapping[str, NodeInfos]):
        self.workflow = workflow
        self.checker = Checker(workflow.prompt, infos)


class Planner:
    """Makes jobs of rows. `infos` are the node types of each server by its name; a job must suit them all.

    `jobs` may run in a thread; `is_stopped` is asked before each row."""

    def __init__(
        self,
        prompt: Prompt,
        infos: Mapping[str, NodeInfos],
        folders: list[Path],
        repeat: int = 1,
        is_stopped: Callable[[], bool] = lambda: False,
    ):
        self._folders, self._repeat, self._is_stopped = folders, repeat, is_stopped
        workflow = Workflow(prompt, next(iter(infos.values())))
        self._plain, self._infos = _Base(workflow, infos), infos
        self._with_topk: _Base | None = None
        self._hashes: dict[Path, str] = {}
        self._found: dict[str, Path | None] = {}  # the local file of a value
        self.faults, self.doubles, self.count = Faults(), Doubles(), 0

    def jobs(self, rows: Iterable[Row]) -> Iterator[Job]:
        """The distinct jobs of all rows, in order; `faults`, `doubles` and `count` are complete when it ends. Raises
        Interrupted."""
        seen: dict[str, int] = {}
        for row in rows:
            if self._is_stopped():
                raise Interrupted
            faults: list[str] = []
            jobs = self._jobs(row, faults)
            for fault in dict.fromkeys(faults):
                self.faults.add(row.number, fault)
            for job in jobs if not faults else ():
                if job.id in seen:
                    self.doubles.add(row.number, seen[job.id])
                else:
                    seen[job.id] = row.number
                    self.count += 1
                    yield job

    def _base(self, row: Row) -> _Base:
        if "topk" not in row.values:
            return self._plain
        if self._with_topk is None:
            self._with_topk = _Base(self._plain.workflow.with_attention(), self._infos)
        return self._with_topk

    def _jobs(self, row: Row, faults: list[str]) -> Iterable[Job]:
        draft = _Draft(self._base(row))
        settings: dict[str, object] = {}
        for name, value in row.values.items():
            try:
                first, *others = draft.base.workflow.targets(name)
                settings[name] = self._set(draft, *first, value)
                for target in others:
                    self._set(draft, *target, self._apart(first, target, settings[name]) if name == "seed" else value)
            except RowFault as error:
                faults.append(str(error) if name in str(error) else f"{brief(name, 100)}: {error}")
        faults += draft.base.checker.faults(draft.prompt, draft.changed)
        uploads = self._uploads(draft, faults)
        if faults:
            return ()
        if self._repeat == 1:
            return (Job(job_id(draft.prompt), row.number, draft.prompt, settings, uploads),)
        return self._repeated(draft, row, settings, uploads, faults)

    def _apart(self, first: Target, other: Target, seed: object) -> object:
        """The value of another seed when the first one is set: it keeps its difference from the first in the workflow,
        where each segment of a long video has a seed."""
        seeds = [self._plain.workflow.prompt[key]["inputs"][name] for key, name in (first, other)]
        if not all(isinstance(each, int) for each in (*seeds, seed)):
            return seed
        return (seed + seeds[1] - seeds[0]) % _SEED_LIMIT

    def _set(self, draft: _Draft, key: str, name: str, value: object) -> object:
        workflow = draft.base.workflow
        spec = workflow.specs(key).get(name)
        if spec is None:
            raise RowFault(f"node {workflow.label(key)} has no input {brief(repr(name))}")
        value = schema.convert(value, spec)
        if wrong := schema.off_step(value, spec):
            raise RowFault(wrong)
        draft.inputs(key)[name] = value
        return value

    def _repeated(
        self, draft: _Draft, row: Row, settings: dict[str, object], uploads: dict[str, str], faults: list[str]
    ) -> Iterable[Job]:
        """The job with its seed, and copies of it with the seeds that follow."""
        try:
            seeds = {
                (key, name): draft.prompt[key]["inputs"][name] for key, name in draft.base.workflow.targets("seed")
            }
            if not all(isinstance(seed, int) for seed in seeds.values()):
                raise RowFault("the workflow's seed is not a number")
        except RowFault as error:
            faults.append(f"--repeat makes each copy with another seed: {error}")
            return ()
        return self._copies(draft, row, seeds, settings, uploads)

    def _copies(
        self,
        draft: _Draft,
        row: Row,
        seeds: dict[Target, int],
        settings: dict[str, object],
        uploads: dict[str, str],
    ) -> Iterator[Job]:
        for i in range(self._repeat):
            if self._is_stopped():
                raise Interrupted
            copied = draft.copy()
            moved = {target: (seed + i) % _SEED_LIMIT for target, seed in seeds.items()}
            for (key, name), seed in moved.items():
                copied.inputs(key)[name] = seed
            first = next(iter(moved.values()))
            yield Job(job_id(copied.prompt), row.number, copied.prompt, settings | {"seed": first}, uploads)

    def _uploads(self, draft: _Draft, faults: list[str]) -> dict[str, str]:
        """The local files that the prompt names, by the names that they will have on a server, which are put into the
        prompt."""
        uploads = {}
        for key in draft.prompt:
            node = draft.prompt[key]
            for name, spec in specs(node, draft.base.workflow.infos).items():
                value = node["inputs"].get(name)
                if not spec.is_file or not isinstance(value, str):
                    continue
                path = self._find(value)
                if path is not None:
                    try:
                        given = draft.inputs(key)[name] = self._upload_name(path)
                    except OSError as error:
                        faults.append(f"{brief(value)} cannot be read ({error.strerror})")
                        continue
                    uploads[given] = str(path.resolve())
                elif lacking := draft.base.checker.lacking(key, node["class_type"], name, value):
                    faults.append(
                        f"{name} of node {draft.base.workflow.label(key)} is {brief(repr(value))}, which is not a "
                        "file here nor in "
                        f"the input folder of {named(lacking)}"
                    )
        return uploads

    def _find(self, value: str) -> Path | None:
        if value not in self._found:
            paths = (folder / value for folder in self._folders)
            self._found[value] = next((path for path in paths if is_file(path)), None)
        return self._found[value]

    def _upload_name(self, path: Path) -> str:
        if path not in self._hashes:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    if self._is_stopped():
                        raise Interrupted
                    digest.update(block)
            self._hashes[path] = digest.hexdigest()[:32]
        return f"{UPLOADS}/{self._hashes[path]}{path.suffix.lower()}"

"""Rows to jobs: values put into the workflow, everything checked against the servers, every fault kept with its row."""

import copy
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import TurboError
from . import schema
from .job import UPLOADS, Job, job_id
from .table import Row, RowFault
from .workflow import Workflow, is_link

_SEED_LIMIT = 1 << 64


@dataclass
class Plan:
    """What a batch will do: its jobs, the faults as (row, sentence), and rows that ask for a job another row has."""

    jobs: list[Job] = field(default_factory=list)
    faults: list[tuple[int, str]] = field(default_factory=list)
    doubles: list[tuple[int, int]] = field(default_factory=list)


class Planner:
    """Makes jobs of rows. `infos` is the /object_info of each server by its name; a job must suit them all."""

    def __init__(self, prompt: dict, infos: dict[str, dict], folders: list[Path], repeat: int = 1):
        self._infos, self._folders, self._repeat = infos, folders, repeat
        self._workflow = Workflow(prompt, next(iter(infos.values())))
        self._with_topk = self._workflow.with_attention()
        self._files: dict[Path, str] = {}  # content hash by path

    def plan(self, rows: list[Row]) -> Plan:
        """The jobs of all rows, in order."""
        plan, seen = Plan(), {}
        for row in rows:
            faults = []
            jobs = self._jobs(row, faults)
            plan.faults += [
                (row.number, fault) for fault in dict.fromkeys(faults) if (row.number, fault) not in plan.faults
            ]
            for job in jobs if not faults else ():
                if job.id in seen:
                    plan.doubles.append((row.number, seen[job.id]))
                else:
                    seen[job.id] = row.number
                    plan.jobs.append(job)
        return plan

    def _jobs(self, row: Row, faults: list[str]) -> list[Job]:
        workflow = self._with_topk if "topk" in row.values else self._workflow
        prompt, settings = copy.deepcopy(workflow.prompt), {}
        for name, value in row.values.items():
            try:
                for key, field_name in workflow.targets(name):
                    settings[name] = self._set(workflow, prompt, key, field_name, value)
            except RowFault as error:
                faults.append(str(error) if name in str(error) else f"{name}: {error}")
        faults += self._check(workflow, prompt)
        uploads = self._uploads(workflow, prompt, faults)
        if faults:
            return []
        if self._repeat == 1:
            return [Job(job_id(prompt), row.number, prompt, settings, uploads)]
        return self._repeated(workflow, row, prompt, settings, uploads, faults)

    def _set(self, workflow: Workflow, prompt: dict, key: str, name: str, value: object) -> object:
        spec = workflow.specs(key).get(name)
        if spec is None:
            raise RowFault(f"node {workflow.label(key)} has no input {name!r}")
        value = schema.convert(value, spec)
        if wrong := schema.off_step(value, spec):
            raise RowFault(wrong)
        prompt[key]["inputs"][name] = value
        return value

    def _repeated(
        self, workflow: Workflow, row: Row, prompt: dict, settings: dict, uploads: dict, faults: list[str]
    ) -> list[Job]:
        """The job with its seed, and with the seeds that follow."""
        jobs = []
        try:
            targets = workflow.targets("seed")
        except RowFault as error:
            faults.append(f"--repeat makes each copy with another seed: {error}")
            return []
        first = int(prompt[targets[0][0]]["inputs"][targets[0][1]])
        for seed in ((first + i) % _SEED_LIMIT for i in range(self._repeat)):
            copied = copy.deepcopy(prompt)
            for key, name in targets:
                copied[key]["inputs"][name] = seed
            jobs.append(Job(job_id(copied), row.number, copied, settings | {"seed": seed}, uploads))
        return jobs

    def _check(self, workflow: Workflow, prompt: dict) -> list[str]:
        """What any server would refuse."""
        faults = {}
        for server, info in self._infos.items():
            for fault in check_prompt(Workflow(prompt, info)):
                faults.setdefault(fault, []).append(server)
        return [
            fault if len(servers) == len(self._infos) else f"{fault} (on {', '.join(servers)})"
            for fault, servers in faults.items()
        ]

    def _uploads(self, workflow: Workflow, prompt: dict, faults: list[str]) -> dict[str, str]:
        """The local files that the prompt names, and in the prompt the names they will have on a server."""
        uploads = {}
        for key, node in prompt.items():
            for name, spec in workflow.specs(key).items():
                value = node["inputs"].get(name)
                if not spec.is_file or not isinstance(value, str):
                    continue
                path = next((p for folder in self._folders if _is_file(p := folder / value)), None)
                if path is not None:
                    try:
                        node["inputs"][name] = self._upload_name(path)
                    except OSError as error:
                        faults.append(f"{value} cannot be read ({error.strerror})")
                        continue
                    uploads[node["inputs"][name]] = str(path.resolve())
                elif lacking := [
                    s for s, i in self._infos.items() if value not in _offered(Workflow(prompt, i), key, name)
                ]:
                    faults.append(
                        f"{name} of node {workflow.label(key)} is {value!r}, which is no file here nor in the input folder of {', '.join(lacking)}"
                    )
        return uploads

    def _upload_name(self, path: Path) -> str:
        if path not in self._files:
            with path.open("rb") as file:
                self._files[path] = (
                    hashlib.file_digest(file, "sha256").hexdigest()[:32]
                    if hasattr(hashlib, "file_digest")
                    else _digest(file)
                )
        return f"{UPLOADS}/{self._files[path]}{path.suffix.lower()}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for any file, such as a text in the wrong column
        return False


def _digest(file) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()[:32]


def _offered(workflow: Workflow, key: str, name: str) -> list:
    spec = workflow.specs(key).get(name)
    return (spec.options.get("options") or []) if spec else []


def check_prompt(workflow: Workflow) -> list[str]:
    """Every fault that the server's own validation of the prompt would find before running it, without the nodes' own checks."""
    faults, saves = [], False
    for key, node in workflow.prompt.items():
        info = workflow.info.get(node["class_type"])
        if info is None:
            faults.append(f"node {workflow.label(key)}: the server has no {node['class_type']}; install its pack")
            continue
        saves |= bool(info.get("output_node"))
        specs = workflow.specs(key)
        for name, spec in specs.items():
            if name not in node["inputs"]:
                if spec.required:
                    faults.append(f"node {workflow.label(key)} lacks its input {name!r}")
                continue
            if wrong := _check_input(workflow, node["inputs"][name], spec):
                faults.append(f"{name} of node {workflow.label(key)} {wrong}")
    if not saves:
        faults.append("the workflow saves nothing: add a node such as Save Video")
    return faults


def _check_input(workflow: Workflow, value: object, spec: schema.Spec) -> str | None:
    if not is_link(value):
        try:
            return schema.fault(schema.convert(value, spec), spec)
        except RowFault as error:
            return str(error)
    source = workflow.prompt.get(value[0])
    if source is None:
        return f"is linked to node {value[0]}, which the workflow does not have"
    outputs = workflow.info.get(source["class_type"], {}).get("output")
    if outputs is None:
        return None  # that node is a fault of its own
    if not 0 <= value[1] < len(outputs):
        return f"is linked to output {value[1]} of node {workflow.label(value[0])}, which has {len(outputs)}"
    given, taken = outputs[value[1]], spec.kind
    if not isinstance(given, str) or any("*" in t or t.startswith("COMFY_MATCHTYPE") for t in (given, taken)):
        return None
    if not {t.strip() for t in given.split(",")} & {t.strip() for t in taken.split(",")}:
        return f"takes {taken} and node {workflow.label(value[0])} gives {given}"
    return None


def refuse(plan: Plan) -> None:
    """Raises TurboError if the plan has no job at all."""
    if not plan.jobs:
        raise TurboError("There is nothing to do: give a table with rows, or --seeds, --vary, --set or --repeat.")

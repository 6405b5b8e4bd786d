"""The files of .github/workflows: they parse, name only files and options that exist, and run what they say. They
cannot run here."""

import itertools
import re
import shlex

import pytest
import yaml
from td_pack.tests.support.server import ROOT

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
LOADED = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
JOBS = [(name, job) for name, file in LOADED.items() for job in file["jobs"].values()]
COMMANDS = [
    (name, step["run"], job["env"]["OPTIONS"])
    for name, job in JOBS
    for step in job.get("steps", ())
    if "dev.py" in step.get("run", "")
]


def combinations(job: dict) -> list[dict]:
    """The runs of a job whose matrix has only entries of its own in `include`."""
    matrix = dict(job["strategy"]["matrix"])
    included = matrix.pop("include", [])
    return [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())] + included


@pytest.mark.parametrize("name, command, options", COMMANDS, ids=[command for _, command, _ in COMMANDS])
def test_a_command_is_one_of_dev_py(name, command, options):
    from td_pack import dev

    for given in re.findall(r"'([^']*)'", options.partition("&&")[2]):
        python, script, *arguments = shlex.split(command.replace("$OPTIONS", given))
        parsed, rest = dev.parse(arguments)
        assert (python, script) == ("python", "dev.py")
        assert parsed.newest == ("--newest" in given) and (parsed.comfyui == ".comfyui") == bool(given)
        paths = [each.removeprefix("--ignore=") for each in rest if "tests/" in each]
        assert all((ROOT / path).exists() for path in paths), rest


def test_every_kind_of_host_system_and_python_is_run():
    runs = {
        (job["with"]["host"] if "$" not in job["with"]["host"] else each["host"], each["os"], each["python"])
        for _, job in JOBS
        if "uses" in job
        for each in combinations(job)
    }
    linux = {(host, python) for host, system, python in runs if system == "ubuntu-latest"}
    assert linux >= {(host, python) for host in ("oldest", "release", "master") for python in ("3.10", "3.13")}
    others = {(host, system) for host, system, _ in runs if system != "ubuntu-latest"}
    assert others == {(host, f"{system}-latest") for host in ("oldest", "release") for system in ("windows", "macos")}


@pytest.mark.parametrize("name, job", [(name, job) for name, job in JOBS if "uses" in job])
def test_a_called_workflow_takes_what_it_is_given(name, job):
    called = LOADED[job["uses"].removeprefix("./.github/workflows/")]
    inputs = called[True]["workflow_call"]["inputs"]  # YAML reads the key `on` as true
    required = {key for key, each in inputs.items() if each.get("required")}
    assert required <= job["with"].keys() <= inputs.keys()


def test_the_newest_hosts_run_weekly_and_on_demand():
    on = LOADED["newest.yml"][True]
    assert "workflow_dispatch" in on and re.fullmatch(r"\d+ \d+ \* \* [0-6]", on["schedule"][0]["cron"])
    assert {"push", "pull_request"} == LOADED["test.yml"][True].keys()

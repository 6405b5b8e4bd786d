"""Generated server answers and plans: a batch ends with 0, 1 or 2 and bounded messages, whatever it is given.

`--long` makes a thousand times as many, which differ from run to run."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from td_pack.tests.turbo_core.batch.scripted_server import NODES, WORKFLOW, ScriptedServer, comfy_answers, served
from td_pack.turbo_core.batch import dispatch, manifest
from td_pack.turbo_core.batch.cli import main
from td_pack.turbo_core.batch.text import LONGEST

ID = "PROMPT_ID"
MOST_SAID = 110 * LONGEST  # a report has 100 lines

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1", "Save", "output", ID, "\ud800", "x" * 5000, "COMFY_DYNAMICCOMBO_V3", "../../a", "\x00"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed(draw, valid: object) -> object:
    """The valid value with one part of it replaced, left out, or nested deeply."""
    if isinstance(valid, (dict, list)) and valid and draw(st.integers(0, 4)):
        copied = dict(valid) if isinstance(valid, dict) else list(valid)
        key = draw(st.sampled_from(sorted(copied) if isinstance(copied, dict) else range(len(copied))))
        if draw(st.integers(0, 5)):
            copied[key] = draw(changed(copied[key]))
        else:
            del copied[key]
        return copied
    return draw(values)


def texts(valid: object) -> st.SearchStrategy[str]:
    """Answers near a valid one, garbage, and JSON that is nested too deeply for a parser."""
    return (
        changed(valid).map(json.dumps)
        | st.sampled_from(["", "<html>", "[" * 20_000, '{"a":' * 3000 + "1" + "}" * 3000, "1" * 6000, "\x00"])
        | st.text(max_size=20)
    )


answers = st.dictionaries(
    st.sampled_from(["object_info", "queue", "history", "prompt", "view", "ws"]), st.just(None), min_size=1, max_size=2
).flatmap(lambda chosen: st.fixed_dictionaries({name: texts(comfy_answers(ID)[f"/{name}"]) for name in chosen}))

GRAPH = WORKFLOW | {
    "2": {"class_type": "Primitive", "inputs": {"value": ["3", 0], "width": 64}, "_meta": {"title": "width"}},
    "3": {"class_type": "Primitive", "inputs": {"value": ["2", 1], "positive": ["1", 0], "image": "a.png"}},
    "4": {"class_type": "Absent", "inputs": {}},
}
workflows = changed(GRAPH).map(json.dumps) | texts(WORKFLOW)
names = st.sampled_from(["seed", "prompt", "negative", "image", "width", "1.text", "Save.seed", "2.value", "1.", "."])
rows = st.dictionaries(names | st.text(max_size=6), values, max_size=4).map(json.dumps) | st.text(max_size=12)
tables = st.lists(rows, max_size=5).map("\n".join) | st.text(max_size=40)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A scripted server, its address, and a folder for files."""
    server = ScriptedServer()
    with served(server) as (url,):
        yield server, url, tmp_path_factory.mktemp("fuzz")


@pytest.fixture
def check(place, capsys, monkeypatch):
    """Runs a batch and checks how it ends."""
    monkeypatch.setattr(dispatch, "_PAUSE", 0.001)
    monkeypatch.setattr(manifest, "_SYNCHRONOUS", "OFF")
    _, url, folder = place
    count = iter(range(1 << 30))

    def run(*arguments: object) -> int:
        code = main([*map(str, arguments), "--out", str(folder / f"out-{next(count)}"), "--server", url])
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert code in (0, 1, 2), said
        assert said and len(said) < MOST_SAID and "Traceback" not in said
        assert all(len(line) < 2 * LONGEST for line in said.split("\n"))
        return code

    return run


def test_a_batch_survives_every_answer(place, check, examples):
    server, _, folder = place
    (folder / "workflow.json").write_text(json.dumps(WORKFLOW))
    ends = set()

    @examples(100, times=1000)
    @given(answers)
    def survives(given_answers):
        server.answers = {f"/{name}": text for name, text in given_answers.items()}
        arguments = ("--workflow", folder / "workflow.json", "--seeds", "1-2", "--retries", "0", "--timeout", "0.2")
        ends.add(check(*arguments))

    survives()
    assert ends == {0, 1, 2}


def test_a_plan_survives_every_workflow_and_table(place, check, examples):
    server, _, folder = place
    node_types = NODES | {
        "Primitive": {
            "input": {
                "required": {"value": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a", "inputs": {}}]}]},
                "optional": {"image": [["a.png"], {"image_upload": True}], "width": ["FLOAT", {"step": 8}]},
            },
            "output": ["CONDITIONING", ["a"]],
        }
    }
    server.answers = {"/object_info": json.dumps(node_types)}
    ends = set()

    @examples(250, times=1000)
    @given(workflows, tables)
    def survives(workflow, table):
        (folder / "plan.json").write_text(workflow, errors="surrogatepass")
        (folder / "jobs.jsonl").write_text(table, errors="surrogatepass")
        ends.add(check(folder / "jobs.jsonl", "--workflow", folder / "plan.json", "--dry-run", "--max-jobs", 200))

    survives()
    assert ends == {0, 2}

"""Rows into jobs against a real server's nodes: what names mean, every fault with its row, ids."""

import copy
import re
from types import SimpleNamespace

import pytest
from PIL import Image
from td_pack.turbo_core.batch.job import job_id, placement
from td_pack.turbo_core.batch.plan import Planner
from td_pack.turbo_core.batch.table import Row, RowFault
from td_pack.turbo_core.batch.workflow import Workflow, read_workflow
from td_pack.turbo_core.errors import TurboError

pytestmark = pytest.mark.server


def plan_rows(prompt, infos, folders, *rows, repeat=1) -> SimpleNamespace:
    """The jobs, faults and doubles of a plan; the rows are numbered from 2."""
    planner = Planner(prompt, infos, folders, repeat)
    jobs = list(planner.jobs(Row(i, values) for i, values in enumerate(rows, 2)))
    return SimpleNamespace(jobs=jobs, faults=list(planner.faults), doubles=list(planner.doubles), planner=planner)


@pytest.fixture
def planned(node_infos, tmp_path):
    def plan(prompt, *rows, repeat=1):
        return plan_rows(prompt, {"here": node_infos}, [tmp_path], *rows, repeat=repeat)

    return plan


def changed(before: dict, after: dict) -> dict:
    """The inputs that differ, as `node.input`."""
    return {
        f"{key}.{name}": value
        for key, node in after.items()
        for name, value in node["inputs"].items()
        if before.get(key, {"inputs": {}})["inputs"].get(name) != value
    }


def test_known_names_find_their_inputs_in_the_shipped_workflows(planned, t2v, i2v, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    row = {"prompt": "a fox", "seed": "5", "width": "128", "height": "64", "length": "9"}
    (job,) = planned(t2v, row).jobs
    assert changed(t2v, job.prompt) == {"5.text": "a fox", "7.seed": 5, "6.width": 128, "6.length": 9}
    plan = planned(i2v, row | {"image": "red.png"})
    assert not plan.faults
    (job,) = plan.jobs
    (upload,) = job.uploads
    assert changed(i2v, job.prompt) == {
        "7.text": "a fox",
        "9.seed": 5,
        "8.width": 128,
        "8.length": 9,
        "6.image": upload,
    }
    assert job.uploads[upload] == str(tmp_path / "red.png")


def test_a_row_of_a_long_video_sets_every_segment_and_keeps_their_seeds_apart(planned, long, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    plan = planned(long, {"prompt": "a fox", "seed": "5", "length": "13", "image": "red.png"}, repeat=2)
    assert not plan.faults
    for job, seed in zip(plan.jobs, (5, 6), strict=True):
        (upload,) = job.uploads
        assert changed(long, job.prompt) == {
            "6.image": upload,
            "7.text": "a fox",
            **{f"{key}.length": 13 for key in ("8", "17", "21")},
            **{f"{key}.seed": seed + k for k, key in enumerate(("9", "18", "22"))},
        }
        assert job.settings["seed"] == seed


def test_topk_adds_an_attention_node_after_every_loader(planned, i2v, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "example.png")
    plan = planned(i2v, {"topk": "0.2"}, {})
    assert not plan.faults
    with_topk, without = (job.prompt for job in plan.jobs)
    assert with_topk["9"]["inputs"]["high"] == ["2-topk", 0] and with_topk["9"]["inputs"]["low"] == ["3-topk", 0]
    assert with_topk["2-topk"]["inputs"]["topk"] == with_topk["3-topk"]["inputs"]["topk"] == 0.2
    assert not any(key.endswith("topk") for key in without)


def test_any_input_is_reached_by_id_and_by_title(planned, t2v):
    by_title = {"TurboDiffusion Sample.steps": 2.0, "Save Video.codec": "h264", "SaveVideo.format": "mp4"}
    (one,) = planned(t2v, {"7.steps": "2", "10.codec": "h264", "10.format": "mp4"}).jobs
    (other,) = planned(t2v, by_title).jobs
    assert one.prompt["7"]["inputs"]["steps"] == 2 and one.id == other.id


FAULTS = [
    ({"promt": "x"}, "no input is called 'promt'"),
    ({"negative": "x"}, "no text that reaches a sampler's negative input alone"),
    ({"image": "x.png"}, "this workflow has no input for 'image'"),
    ({"seed": "-1"}, "seed of node 7 .* is -1, and the least is 0"),
    ({"seed": "many"}, "seed: takes a whole number, not 'many'"),
    ({"length": "80"}, "length: is 80, and it goes in steps of 4: choose 77 or 81"),
    ({"topk": "2"}, "topk of node 2-topk .* is 2.0, and the most is 1"),
    ({"7.mode": "euler"}, "mode of node 7 .* is 'euler', which the server does not have; it has: auto, sde, ode"),
    ({"2.model_name": "tiny_t2v_sIa.pth"}, "near: tiny_t2v_sla.pth"),
    ({"7.high": "x"}, "takes a MODEL from another node, not a value"),
    ({"6.widht": "64"}, "no input is called '6.widht'"),
]


@pytest.mark.parametrize(
    "values,message", FAULTS, ids=[next(iter(values)) + str(i) for i, (values, _) in enumerate(FAULTS)]
)
def test_a_fault_names_its_row_and_what_to_do(planned, t2v, values, message):
    plan = planned(t2v, {}, values, {"seed": 1})
    assert {row for row, _ in plan.faults} == {3} and len(plan.faults) == 1
    assert re.search(message, plan.faults[0][1]), plan.faults
    assert len(plan.jobs) == 2


def test_faults_of_the_graph_itself_are_found(planned, t2v):
    broken = copy.deepcopy(t2v)
    broken["8"]["inputs"]["vae"] = ["99", 0]
    broken["7"]["inputs"]["latent"] = ["5", 0]
    del broken["8"]["inputs"]["samples"]
    broken["10"]["class_type"] = "AbsentNode"
    said = " | ".join(fault for _, fault in planned(broken, {}).faults)
    for part in (
        "linked to node 99, which the workflow does not have",
        "takes LATENT and node 5 (Prompt (long, in English)) gives CONDITIONING",
        "lacks its input 'samples'",
        "the server has no AbsentNode",
        "saves nothing",
    ):
        assert part in said


def test_a_size_replaces_what_another_node_computed(planned, i2v, tmp_path):
    """In the shipped workflow the size is that of the prepared image."""
    Image.new("RGB", (8, 8)).save(tmp_path / "example.png")
    (job,) = planned(i2v, {"width": "128", "height": "64"}).jobs
    (node,) = [node["inputs"] for node in job.prompt.values() if node["class_type"] == "WanImageToVideo"]
    assert (node["width"], node["height"]) == (128, 64)


def test_a_fault_of_one_server_names_it(node_infos, t2v):
    poorer = {name: info for name, info in node_infos.items() if name != "SaveVideo"}
    said = [fault for _, fault in plan_rows(t2v, {"rich": node_infos, "poor": poorer}, [], {}).faults]
    assert len(said) == 2 and all(fault.endswith("(on poor)") for fault in said) and "SaveVideo" in "".join(said)


@pytest.mark.parametrize("image", ["absent.png", "a fox " * 100])
def test_an_image_that_is_nowhere_is_a_fault(planned, i2v, image):
    (fault,) = planned(i2v, {"image": image}).faults
    assert "is 'a" in fault[1] and ", which is not a file here nor in the input folder of here" in fault[1]


def test_the_id_is_the_content_and_not_the_title_or_the_file_s_name(planned, i2v, tmp_path):
    for name, color in (("a.png", "red"), ("b.png", "red"), ("c.png", "blue")):
        Image.new("RGB", (8, 8), color).save(tmp_path / name)
    plan = planned(i2v, {"image": "a.png"}, {"image": "b.png"}, {"image": "c.png"})
    assert plan.doubles == [(3, 2)] and len({job.id for job in plan.jobs}) == 2
    titled = copy.deepcopy(i2v)
    titled["6"]["_meta"]["title"] = "another title"
    assert job_id(titled) == job_id(i2v)
    titled["9"]["inputs"]["seed"] = 1
    assert job_id(titled) != job_id(i2v)


def test_repeats_take_the_seeds_that_follow(planned, t2v):
    plan = planned(t2v, {"seed": 18446744073709551614}, repeat=3)
    assert [job.prompt["7"]["inputs"]["seed"] for job in plan.jobs] == [2**64 - 2, 2**64 - 1, 0]


def test_jobs_of_one_model_and_size_are_placed_together(planned, t2v):
    same, other_seed, wide = (placement(job.prompt) for job in planned(t2v, {}, {"seed": 9}, {"width": "128"}).jobs)
    assert same == other_seed and same[0] == wide[0] and same != wide


def test_a_second_sampler_has_a_seed_too_and_two_pictures_are_ambiguous(node_infos, i2v):
    two = copy.deepcopy(i2v)
    two["20"] = copy.deepcopy(two["9"])
    two["20"]["inputs"]["seed"] = 77
    two["21"] = copy.deepcopy(two["6"])
    workflow = Workflow(two, node_infos)
    assert workflow.targets("seed") == [("9", "seed"), ("20", "seed")]
    with pytest.raises(RowFault, match="'image' could be 6.image .*, 21.image .*; write which"):
        workflow.targets("image")


def test_prompt_and_negative_are_distinguished_through_conditioning_nodes(node_infos, t2v):
    prompt = copy.deepcopy(t2v)
    prompt["20"] = copy.deepcopy(prompt["5"])
    prompt["21"] = {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["20", 0]}}
    prompt["7"]["inputs"]["negative"] = ["21", 0]
    workflow = Workflow(prompt, node_infos)
    assert workflow.targets("prompt") == [("5", "text")] and workflow.targets("negative") == [("20", "text")]


@pytest.mark.parametrize("circle", [["20"], ["20", "21"]], ids=["itself", "each other"])
def test_primitives_linked_in_a_circle_end(node_infos, t2v, circle):
    prompt = copy.deepcopy(t2v)
    for key, source in zip(circle, circle[1:] + circle[:1], strict=True):
        prompt[key] = {"class_type": "PrimitiveInt", "inputs": {"value": [source, 0]}}
    prompt["7"]["inputs"]["seed"] = [circle[0], 0]
    ((key, name),) = Workflow(prompt, node_infos).targets("seed")
    assert key in circle and name == "value"


@pytest.mark.parametrize(
    "content,message",
    [
        ('{"nodes": [], "links": []}', "is a workflow of the editor; save it there with Export"),
        ('{"1": {"inputs": {}}}', "each node needs class_type and inputs"),
        ("[]", "is not a workflow in API format"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_no_api_workflow_says_so(tmp_path, content, message):
    path = tmp_path / "w.json"
    path.write_text(content)
    with pytest.raises(TurboError, match=message):
        read_workflow(path)

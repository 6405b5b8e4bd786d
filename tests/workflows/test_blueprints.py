"""The subgraph blueprints: listed by the server, sound as graphs, and made of nodes it has."""

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "subgraphs"
INPUT, OUTPUT = -10, -20  # the ids of a subgraph's two ends


@pytest.fixture(params=sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


@pytest.fixture
def blueprint(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def subgraph(blueprint) -> dict:
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    return subgraph


def test_one_node_stands_for_the_subgraph(path, blueprint, subgraph):
    (node,) = blueprint["nodes"]
    assert node["type"] == subgraph["id"] and node["title"] == subgraph["name"] == path.stem
    assert [(i["name"], i["type"]) for i in node["inputs"]] == [(i["name"], i["type"]) for i in subgraph["inputs"]]
    assert [(o["name"], o["type"]) for o in node["outputs"]] == [(o["name"], o["type"]) for o in subgraph["outputs"]]
    inner = {node["id"]: node for node in subgraph["nodes"]}
    for node_id, widget in node["properties"]["proxyWidgets"]:
        names = [i["name"] for i in inner[int(node_id)]["inputs"] if "widget" in i]
        assert widget in names or widget == "control_after_generate"


def test_links_are_the_same_at_both_ends(subgraph):
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    links = {link["id"]: link for link in subgraph["links"]}
    assert len(links) == len(subgraph["links"])
    said = {
        (i["link"], n["id"], slot)
        for n in nodes.values()
        for slot, i in enumerate(n["inputs"])
        if i["link"] is not None
    }
    said |= {(link, OUTPUT, slot) for slot, end in enumerate(subgraph["outputs"]) for link in end["linkIds"]}
    assert said == {(link["id"], link["target_id"], link["target_slot"]) for link in links.values()}
    said = {(k, n["id"], slot) for n in nodes.values() for slot, o in enumerate(n["outputs"]) for k in o["links"] or ()}
    said |= {(link, INPUT, slot) for slot, end in enumerate(subgraph["inputs"]) for link in end["linkIds"]}
    assert said == {(link["id"], link["origin_id"], link["origin_slot"]) for link in links.values()}


@pytest.mark.server
def test_the_server_lists_it_and_has_its_nodes(path, subgraph, server, object_info):
    listed = json.loads(server.client.get("/global_subgraphs"))
    (entry,) = (key for key, item in listed.items() if item["name"] == path.stem)
    assert listed[entry]["info"]["node_pack"] == f"custom_nodes.{server.pack_name}"
    assert json.loads(json.loads(server.client.get(f"/global_subgraphs/{entry}"))["data"]) == json.loads(
        path.read_text()
    )
    for node in subgraph["nodes"]:
        declared = object_info[node["type"]]["input"]
        names = declared.get("required", {}).keys() | declared.get("optional", {}).keys()
        assert {i["name"] for i in node["inputs"]} - {"upload"} <= names
        assert not declared.get("required", {}).keys() - {i["name"] for i in node["inputs"]}

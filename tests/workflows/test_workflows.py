"""The workflows and the subgraph blueprints that ship: sound as graphs of nodes that the server has; the workflows say
where their models come from. tests/browser compares their two formats."""

import json
import re
from collections import Counter
from fractions import Fraction
from itertools import combinations
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image
from td_pack.nodes.decode import encode_mp4
from td_pack.tests.support import vaes
from td_pack.tests.support.graph import BYPASSED, NOTES
from td_pack.tests.support.server import ROOT
from td_pack.tests.support.workflows import TINY_FILES, api_name, fit, is_link, load
from td_pack.turbo_core.batch.node_info import parse_node_infos
from td_pack.turbo_core.camera.actions import path_from_actions
from td_pack.turbo_core.video import LazyImages

WORKFLOWS = ROOT / "workflows"
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
INPUT, OUTPUT = -10, -20  # the ids of a subgraph's two ends
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))  # the titles that the page shows
MODEL_FILES = (".safetensors", ".pth")
MADE = "-int8.safetensors"  # by TurboDiffusion Convert, from published files that the note names
# At 480p every card that can hold a model's int8 file can also run a step of it.
RESOLUTION, SIZES = "480p", {(640, 640), (640, 480), (480, 640), (832, 480), (480, 832)}
TITLE = 30  # a node's title bar stands above its `pos`


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def ui(name) -> dict:
    return read(WORKFLOWS / f"{name}.json")


@pytest.fixture
def api(name) -> dict:
    return load(api_name(name))


@pytest.fixture(params=BLUEPRINTS, ids=lambda path: path.stem)
def blueprint(request):
    return request.param


def subgraph_of(blueprint) -> dict:
    (subgraph,) = read(blueprint)["definitions"]["subgraphs"]
    return subgraph


def nodes_and_links(path) -> tuple[list[dict], list[list]]:
    """Of a workflow, or of a blueprint's subgraph, whose two ends are nodes too.

    A link is its id, source, slot, target, slot and type."""
    graph = read(path)
    if path not in BLUEPRINTS:
        return graph["nodes"], graph["links"]
    graph = subgraph_of(path)
    given = {"id": INPUT, "inputs": [], "outputs": [each | {"links": each["linkIds"]} for each in graph["inputs"]]}
    made = {"id": OUTPUT, "outputs": [], "inputs": [each | {"link": each["linkIds"][0]} for each in graph["outputs"]]}
    ends = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return [*graph["nodes"], given, made], [[link[name] for name in ends] for link in graph["links"]]


def test_every_workflow_is_there_in_both_formats():
    assert NAMES, "no workflow found"
    assert sorted(map(api_name, NAMES)) == sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))


@pytest.mark.parametrize("path", [*sorted(WORKFLOWS.glob("*.json")), *BLUEPRINTS], ids=lambda path: path.stem)
def test_ids_are_unique_and_links_are_the_same_at_both_ends(path):
    nodes, links = nodes_and_links(path)
    ids, kinds = [node["id"] for node in nodes], {link[0]: link[5] for link in links}
    assert len(set(ids)) == len(ids) and len(kinds) == len(links)
    if path not in BLUEPRINTS:
        ui = read(path)
        assert (ui["last_node_id"], ui["last_link_id"], ui["version"]) == (max(ids), max(kinds), 0.4)
    said_by_sources, said_by_targets = {}, {}
    for node in nodes:
        for slot, output in enumerate(node["outputs"]):
            said_by_sources |= {link: (node["id"], slot, output["type"]) for link in output["links"] or ()}
        for slot, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                # A socket may take several types, "IMAGE,MASK", or any, "*"; its link carries one of them.
                kind = kinds.get(socket["link"])
                taken = kind if kind in socket["type"].split(",") or socket["type"] == "*" else socket["type"]
                said_by_targets[socket["link"]] = (node["id"], slot, taken)

    assert said_by_sources == {link: (s, slot, kind) for link, s, slot, _, _, kind in links}
    assert said_by_targets == {link: (t, slot, kind) for link, _, _, t, slot, kind in links}


def test_one_node_stands_for_a_blueprints_subgraph(blueprint):
    (node,), subgraph = read(blueprint)["nodes"], subgraph_of(blueprint)
    assert node["type"] == subgraph["id"] and node["title"] == subgraph["name"] == blueprint.stem
    for part in ("inputs", "outputs"):
        assert [(i["name"], i["type"]) for i in node[part]] == [(i["name"], i["type"]) for i in subgraph[part]]
    inner = {node["id"]: node for node in subgraph["nodes"]}
    for node_id, widget in node["properties"]["proxyWidgets"]:
        names = [i["name"] for i in inner[int(node_id)]["inputs"] if "widget" in i]
        assert widget in names or widget == "control_after_generate"


def box(node: dict) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a node with its title bar, which is all that a collapsed one has."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y if node["flags"].get("collapsed") else y + height


def test_no_node_covers_another(ui):
    for one, other in combinations(ui["nodes"], 2):
        # The Chinese note does so neither collapsed nor opened.
        (a0, b0, a1, b1), (c0, d0, c1, d1) = box(one | {"flags": {}}), box(other | {"flags": {}})
        assert a1 <= c0 or c1 <= a0 or b1 <= d0 or d1 <= b0, f"nodes {one['id']} and {other['id']} overlap"


def test_every_node_but_the_note_is_inside_a_group(ui):
    for node in ui["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        around = [
            group["title"]
            for group in ui["groups"]
            if group["bounding"][0] <= x
            and x + width <= group["bounding"][0] + group["bounding"][2]
            and group["bounding"][1] <= y - TITLE
            and y + height <= group["bounding"][1] + group["bounding"][3]
        ]
        assert len(around) == (0 if node["type"] in NOTES else 1), f"node {node['id']} is in groups {around}"


def notes_of(ui: dict) -> tuple[dict, dict]:
    """The English note and the Chinese one."""
    english, chinese = (node for node in ui["nodes"] if node["type"] in NOTES)
    return english, chinese


def test_the_note_is_there_in_chinese_too_and_says_the_same(ui):
    english, chinese = notes_of(ui)
    assert (english["title"], chinese["title"]) == ("Read me", "中文说明")
    assert not english["flags"] and chinese["flags"] == {"collapsed": True}
    lines = [note["widgets_values"][0].split("\n") for note in (english, chinese)]
    for here, there in zip(*lines, strict=True):
        assert not here or here.startswith("- `ComfyUI/") or re.search(r"[\u4e00-\u9fff]", there), there
        for part in (r"^(?:#+ |- )?", r"\]\(\S+?\)", r"`[^`]+`", r"\d+(?:[.,]\d+)*(?:x\d+)?"):
            assert Counter(re.findall(part, here)) == Counter(re.findall(part, there)), (here, there)


def test_loaders_and_the_note_say_where_every_model_file_comes_from(ui):
    note = notes_of(ui)[0]["widgets_values"][0]
    for node in ui["nodes"]:
        files = {v for v in node.get("widgets_values", ()) if isinstance(v, str) and v.endswith(MODEL_FILES)}
        models = node["properties"].get("models", [])
        made = {file for file in files if file.endswith(MADE)}
        assert {model["name"] for model in models} == files - made, f"node {node['id']} ({node['type']})"
        assert all(f"`{file}`" in note and "docs/recipes.md" in note for file in made)
        for model in models:
            url = urlsplit(model["url"])
            assert url.scheme == "https" and url.netloc == "huggingface.co"
            assert url.path.endswith(f"/{model['name']}")
            assert model["directory"] in {"diffusion_models", "clip_vision", "text_encoders", "vae", "vae_approx"}
            assert f"[{model['name']}]({model['url']})" in note and f"models/{model['directory']}/" in note


def test_turbowan_templates_offer_int8_files(api):
    """They fit the cards that most users have; the note names the bf16 ones as a second choice."""
    files = [n["inputs"]["model_name"] for n in api.values() if n["class_type"] == "TurboDiffusionLoader"]
    assert files and all(f.endswith(("-quant.pth", MADE)) for f in files if f.startswith("TurboWan"))


def test_the_seed_stays(ui):
    for node in ui["nodes"]:
        if node["type"] == "TurboDiffusionSample":
            assert node["widgets_values"][1] == "fixed"


def length_of(value, api: dict) -> int:
    """The frames of a video, which may come from its camera."""
    if not is_link(value):
        return value
    path = api[value[0]]
    assert (path["class_type"], value[1]) == ("TurboDiffusionCameraPath", 1)
    given = path["inputs"]
    return given["length"] if given["source"] == "preset" else path_from_actions(given["actions"]).frames


LATENTS = {"EmptyHunyuanLatentVideo", "WanImageToVideo", "WanFirstLastFrameToVideo", "WanVaceToVideo"}


def test_length_rate_and_size_fit_the_model(api):
    latents = [n["inputs"] for n in api.values() if n["class_type"] in LATENTS]
    videos = [n["inputs"] for n in api.values() if n["class_type"] in {"TurboDiffusionVAEDecodeVideo", "CreateVideo"}]
    assert latents and videos and all(video["fps"] == 16 for video in videos)
    for latent in latents:
        assert length_of(latent["length"], api) % 4 == 1
        for embed in (n["inputs"] for n in api.values() if n["class_type"] == "TurboDiffusionCameraEmbed"):
            assert (embed["width"], embed["height"]) == (latent["width"], latent["height"])
            assert embed["camera"][0] == latent["length"][0]
        if is_link(latent["width"]):
            (picture,) = (key for key, n in api.items() if n["class_type"] == "TurboDiffusionPrepareImage")
            assert (latent["width"], latent["height"]) == ([picture, 1], [picture, 2])
            assert latent["start_image"] == [picture, 0] or is_last_frames(latent["start_image"], api)
            assert api[picture]["inputs"]["resolution"] == RESOLUTION
        else:
            assert (latent["width"], latent["height"]) in SIZES


def is_last_frames(link: list, api: dict) -> bool:
    """Whether a picture is the end of the segment before, all of which have one overlap that suits the VAE."""
    joins = [n["inputs"] for n in api.values() if n["class_type"] == "TurboDiffusionJoinVideo"]
    assert {join["overlap"] for join in joins} == {5}
    return api[link[0]]["class_type"] == "TurboDiffusionJoinVideo" and link[1] == 1


def test_a_lora_waits_behind_every_model(ui):
    nodes = {node["id"]: node for node in ui["nodes"]}
    readers = {(link[1], link[3]) for link in ui["links"] if nodes[link[1]]["type"] == "TurboDiffusionLoader"}
    assert readers
    for _, reader in readers:
        assert (nodes[reader]["type"], nodes[reader]["mode"]) == ("TurboDiffusionLoRA", BYPASSED)


def test_a_workflow_is_readable_as_a_whole_on_a_laptop(ui):
    """It opens fitted to three quarters of the canvas, and the page draws no text below 8 px: 14 px at a scale of
    0.57."""
    boxes = [(x, y + TITLE, right, bottom) for x, y, right, bottom in map(box, ui["nodes"])]
    boxes += [(x, y, x + width, y + height) for x, y, width, height in (group["bounding"] for group in ui["groups"])]
    width = max(right for *_, right, _ in boxes) - min(left for left, *_ in boxes)
    height = max(bottom for *_, bottom in boxes) - min(top for _, top, *_ in boxes)
    assert 0.75 * min(1440 / width, 864 / height) > 0.57


def test_thumbnail_is_a_small_square_jpeg(name):
    path = WORKFLOWS / f"{name}.jpg"
    assert path.stat().st_size <= 100_000
    with Image.open(path) as image:
        assert image.format == "JPEG"
        assert image.width == image.height


def assert_declared(class_type: str, given: dict, object_info: dict) -> None:
    """Each required input is given, and each that is given is one of the node's; "upload" is a button of the page."""
    declared = parse_node_infos(object_info, [class_type])[class_type].inputs_of(given)
    required = {name for name, spec in declared.items() if spec.required}
    assert required <= given.keys() - {"upload"} <= declared.keys(), class_type


@pytest.mark.server
def test_the_server_has_its_nodes_and_their_inputs(api, server):
    object_info = server.client.object_info()
    for node in api.values():
        assert_declared(node["class_type"], node["inputs"], object_info)


@pytest.mark.server
def test_the_server_lists_a_blueprint_and_has_its_nodes(blueprint, server):
    listed = json.loads(server.client.get("/global_subgraphs"))
    (entry,) = (key for key, item in listed.items() if item["name"] == blueprint.stem)
    assert listed[entry]["info"]["node_pack"] == f"custom_nodes.{server.pack_name}"
    assert json.loads(json.loads(server.client.get(f"/global_subgraphs/{entry}"))["data"]) == read(blueprint)
    object_info = server.client.object_info()
    for node in subgraph_of(blueprint)["nodes"]:
        assert_declared(node["type"], {i["name"]: None for i in node["inputs"]}, object_info)


@pytest.mark.server
def test_the_server_offers_them_as_templates(server):
    # tests/browser opens them. (From a folder with a space in its name ComfyUI's static route answers 404.)
    assert sorted(json.loads(server.client.get("/workflow_templates"))[server.pack_name]) == NAMES


@pytest.mark.server
def test_it_makes_a_video_on_tiny_models(api, server):
    Image.new("RGB", (96, 64), "orange").save(server.input_dir / "example.png")
    encode_mp4(LazyImages(torch.zeros(5, 48, 64, 3, dtype=torch.uint8)), server.input_dir / "example.mp4", Fraction(16))
    length = 9 if any(node["class_type"] == "TurboDiffusionJoinVideo" for node in api.values()) else 5
    vaes.write_draft(server.models_dir)
    prompt = fit(api, models=TINY_FILES, width=64, height=48, length=length)
    for node in prompt.values():
        if node["class_type"] == "BasicScheduler":
            node["inputs"]["steps"] = 4  # the others have no more
    result = server.client.run(prompt)
    kept = [file["filename"] for file in result.files if file["type"] == "output"]
    assert [name.rsplit(".", 1)[-1] for name in kept] == ["mp4"]

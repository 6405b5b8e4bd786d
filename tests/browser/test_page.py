"""What a person sees and does in the browser, on a real server and tiny models."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from td_pack.tests.support import workflows
from td_pack.tests.support.server import ROOT
from td_pack.tests.tiny import demo, vision, world

pytestmark = pytest.mark.server

TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
DECODE = "TurboDiffusionVAEDecodeVideo"


def test_the_page_knows_every_node(page):
    ours = sorted({path.stem for path in (ROOT / "nodes/web/docs").glob("*.md")})
    assert ours
    assert page.tab.evaluate("names => names.filter(name => !(name in LiteGraph.registered_node_types))", ours) == []


def t2v(text: str) -> dict:
    """The shipped text-to-video workflow on the toy model."""
    return workflows.fit(workflows.load(demo.JOBS["t2v"]), models=demo.TOY_FILES, toy_text=text, **demo.TOY_SIZE)


def key_of(prompt: dict, class_type: str) -> str:
    return next(key for key, node in prompt.items() if node["class_type"] == class_type)


def test_a_workflow_made_by_hand_gives_the_video_it_asks_for(page, server):
    text = demo.TOY_PROMPTS["t2v"]
    prompt = t2v("a red disc")
    decode = key_of(prompt, DECODE)
    del prompt[decode]
    for node in prompt.values():
        node["inputs"] = {key: value for key, value in node["inputs"].items() if value != [decode, 0]}
    page.load(prompt)
    page.fit_view()

    node = page.add_node("latent to video", "TurboDiffusion VAE Decode Video", DECODE)
    page.drag_link(page.node_id("TurboDiffusionSample"), 0, node, 0)
    page.drag_link(page.node_id("VAELoader"), 0, node, 1)
    page.drag_link(node, 0, page.node_id("SaveVideo"), 0)
    page.type_number(node, "fps", "8")
    page.type_text("text", text)
    page.picture("before-run")
    page.run()
    page.tab.wait_for_function("() => [...document.querySelectorAll('video')].some(video => video.videoWidth === 128)")
    page.fit_view()
    page.picture("video")

    videos = (server.output_dir / "video").glob(f"{demo.JOBS['t2v']}*.mp4")
    clip, fps = read_video(max(videos, key=lambda path: path.stat().st_mtime))  # other tests may have saved some
    score = vision.score(clip, world.parse(text))
    assert fps == 8 and score.color and score.direction and score.background


def read_video(path: Path) -> tuple[torch.Tensor, float]:
    """The frames [count, height, width, 3] in 0..1 and how many a second has."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return torch.from_numpy(np.stack(frames)).float() / 255, float(stream.average_rate)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_with_every_node_and_is_the_graph_in_api_format(page, name):
    page.open_template(name)
    assert page.unknown_types() == []
    page.tab.wait_for_function("() => app.canvas.ds.scale > 0.57 && !app.canvas.low_quality")  # text is drawn
    page.picture(f"template-{name}")
    made = page.exported()
    for node in made.values():
        # Save Video has this one since about ComfyUI 0.34, and still takes `codec`, which is what our files give.
        assert node["class_type"] != "SaveVideo" or node["inputs"].pop("format.codec", "auto") == "auto"
        node["inputs"].pop("video-preview", None)  # what the page shows on Load Video, which is no input of the node
    assert made == workflows.load(workflows.api_name(name))


@pytest.mark.parametrize("words", ["turbo", "wan", "fast video"])
def test_templates_are_found_by(page, words):
    page.tab.get_by_role("button", name="Templates", exact=True).click()
    dialog = page.tab.get_by_role("dialog")
    dialog.get_by_text("All Templates", exact=True).first.click()
    dialog.get_by_placeholder("Search").first.fill(words)
    page.tab.get_by_test_id("template-workflow-Turbo Wan 1.3B fast video from text").wait_for()
    page.tab.keyboard.press("Escape")
    dialog.first.wait_for(state="hidden")


def test_a_wrong_input_is_explained(page):
    prompt = t2v("a red disc")
    prompt[key_of(prompt, "TurboDiffusionSample")]["inputs"]["sigma_max"] = 5
    page.load(prompt)
    page.run()
    page.tab.get_by_test_id("error-overlay").get_by_role("button", name="View details").click()
    page.tab.get_by_role("button", name="Locate TurboDiffusion Sample - sigma_max").click()
    page.tab.get_by_role("button", name="Info for TurboDiffusion Sample - sigma_max").click()
    sentence = page.tab.get_by_text(
        "it must exceed 14.2, else the noise would rise after the first step; use 80 for T2V"
    )
    sentence.wait_for()
    page.picture("wrong-input")
    assert "sigma_max is 5.0" in sentence.inner_text()
    assert page.tab.evaluate("id => app.graph.getNodeById(id).has_errors", page.node_id("TurboDiffusionSample"))


def test_an_error_of_a_run_begins_with_its_sentence(page):
    prompt = t2v("a red disc")
    (size,) = (n for n in prompt.values() if n["class_type"] == "EmptyHunyuanLatentVideo")
    size["class_type"], length = "EmptyLatentImage", size["inputs"].pop("length")
    assert length
    page.load(prompt)
    page.run()
    toast = page.tab.locator(".p-toast-message")
    toast.filter(has_text="The latent is").wait_for()
    assert toast.filter(has_text="The latent is").inner_text().startswith("The latent is [1, 4, 16, 16], and this")
    page.picture("error-toast")
    toast.filter(has_text="The latent is").get_by_role("button").click()
    page.tab.get_by_test_id("error-overlay").get_by_role("button", name="View details").click()
    page.tab.get_by_text("TurboDiffusion.Error: The latent is [1, 4, 16, 16]").first.wait_for()
    page.picture("error-panel")


@pytest.mark.parametrize("nodes_2", [False, True], ids=["canvas", "Nodes 2.0"])
def test_a_camera_path_shows_the_inputs_of_its_source(page, nodes_2):
    job = {"1": {"class_type": "TurboDiffusionCameraPath", "inputs": {"source": "preset", "amount": 0.5, "length": 41}}}
    page.tab.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", nodes_2)
    try:
        page.load(job)
        assert page.shown_widgets() == {"source", "preset", "amount", "ease", "length", "fov"}
        page.set_widget(page.node_id("TurboDiffusionCameraPath"), "source", "folder")
        assert page.shown_widgets() == {"source", "folder", "convention", "fov", "max_length"}
        if nodes_2:  # the rare inputs are behind a button
            node = page.tab.locator("[data-node-id]").first
            node.get_by_text("folder", exact=True).first.wait_for()
            node.get_by_role("button", name="Show advanced inputs").wait_for()
            assert not node.get_by_text("amount", exact=True).or_(node.get_by_text("convention", exact=True)).count()
        page.picture(f"camera-path-{nodes_2}")
        (made,) = (node["inputs"] for node in page.exported().values())
        assert (made["amount"], made["length"], made["actions"]) == (0.5, 41, "w-40"), "hidden inputs keep their values"
    finally:
        page.tab.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", False)


# Last, because the tests after a change of language now and then found the workflow before on the canvas again.
def test_nodes_are_in_chinese_where_the_page_is(page):
    page.set_language("zh")
    try:
        labels = "() => LiteGraph.createNode('TurboDiffusionSample').widgets.map(widget => widget.label)"
        assert {"步数", "种子", "噪声设备"} <= set(page.tab.evaluate(labels))
    finally:
        page.set_language("en")

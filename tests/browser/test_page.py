"""What a person sees and does in the browser, on a real server and tiny models."""

from pathlib import Path

import pytest
from td_pack.tests.support import checkpoints, workflows
from td_pack.tests.support.jobs import t2v_job

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
DECODE = "TurboDiffusionVAEDecodeVideo"


def test_the_page_knows_every_node(page):
    ours = sorted({path.stem for path in (ROOT / "nodes/web/docs").glob("*.md")})
    assert ours
    assert page.tab.evaluate("names => names.filter(name => !(name in LiteGraph.registered_node_types))", ours) == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_opens_with_every_node(page, name):
    page.open_template(name)
    assert any(kind.startswith("TurboDiffusion") for kind in page.node_types())
    assert page.unknown_types() == []
    page.picture(f"template-{name}")


def test_a_workflow_made_by_hand_gives_a_video(page):
    models = {"*T2V*": checkpoints.T2V_SLA, "*vae*": checkpoints.VAE}
    prompt = workflows.fit(workflows.load("TurboWan2.1-T2V-1.3B-480P"), models=models, width=64, height=48, length=5)
    decode = next(key for key, node in prompt.items() if node["class_type"] == DECODE)
    del prompt[decode]
    for node in prompt.values():
        node["inputs"] = {key: value for key, value in node["inputs"].items() if value != [decode, 0]}
    page.load(prompt)

    assert any("TurboDiffusion VAE Decode Video" in found for found in page.search("latent to video"))
    page.add_found("TurboDiffusion VAE Decode Video", DECODE)
    node = page.node_id(DECODE)
    page.drag_link(page.node_id("TurboDiffusionSample"), 0, node, 0)
    page.drag_link(page.node_id("VAELoader"), 0, node, 1)
    page.drag_link(node, 0, page.node_id("SaveVideo"), 0)
    page.tab.evaluate("id => { app.graph.getNodeById(id).widgets[0].value = 8 }", node)
    page.picture("before-run")
    page.run()
    page.tab.wait_for_function("() => [...document.querySelectorAll('video')].some(video => video.videoWidth === 64)")
    page.picture("video")


def test_a_wrong_input_is_explained(page):
    job = t2v_job("refused")
    job["sample"]["inputs"]["sigma_max"] = 5
    page.load({str(i): node for i, node in enumerate(renamed(job), 1)})
    page.run()
    page.tab.get_by_test_id("error-overlay").get_by_role("button", name="View details").click()
    # The panel names the inputs; the sentence itself is in the answer that the page keeps.
    page.tab.get_by_text("TurboDiffusion Sample - sigma_max").first.wait_for()
    page.picture("wrong-input")
    kept = page.tab.evaluate("() => JSON.stringify(app.lastNodeErrors)")
    assert "sigma_max - " in kept and "14.2" in kept
    assert page.tab.evaluate("id => app.graph.getNodeById(id).has_errors", page.node_id("TurboDiffusionSample"))


def renamed(job: dict) -> list[dict]:
    """The nodes with numbers for names, which is what the page takes."""
    numbers = {name: str(i) for i, name in enumerate(job, 1)}
    for node in job.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][key] = [numbers[value[0]], value[1]]
    return list(job.values())

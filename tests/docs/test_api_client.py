"""The example client of docs/api.md against a live server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from PIL import Image
from td_pack.nodes.metadata import KEY, pack_version
from td_pack.tests.support import workflows
from td_pack.tests.support.server import ROOT, free_port
from td_pack.tests.support.videos import rate_and_metadata
from td_pack.tests.support.workflows import TINY_FILES
from td_pack.tests.turbo_core.batch.scripted_server import ScriptedServer, served

pytestmark = pytest.mark.server


@pytest.fixture
def run(server, tmp_path):
    """Runs the client on a shipped workflow with tiny models, or on other text, in a temporary folder."""

    def client(name: str, *options: str, change=None, text="", url: str = server.url) -> subprocess.CompletedProcess:
        prompt = workflows.fit(workflows.load(name), models=TINY_FILES, width=64, height=48, length=5)
        (change or (lambda prompt: None))(prompt)
        (tmp_path / "workflow.json").write_text(text or json.dumps(prompt))
        command = [sys.executable, str(ROOT / "docs" / "api_client.py"), "workflow.json", "--server", url, *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return client


T2V, I2V = "TurboWan2.1-T2V-1.3B-480P", "TurboWan2.2-I2V-A14B-720P"


def test_text_to_video_with_every_option(run, tmp_path):
    done = run(T2V, "--prompt", "a fox", "--seed", "7", "--size", "48x64", "--length", "9", "--out", "fox.mp4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fox.mp4"] and "TurboDiffusion Sample" in done.stderr and "4 of 4" in done.stderr
    rate, metadata = rate_and_metadata(tmp_path / "fox.mp4")
    nodes = {node["class_type"]: node["inputs"] for node in json.loads(metadata["prompt"]).values()}
    assert rate == 16
    assert nodes["TurboDiffusionSample"]["seed"] == 7 and nodes["TestTextEmbedding"]["text"] == "a fox"
    assert nodes["EmptyHunyuanLatentVideo"] == {"width": 48, "height": 64, "length": 9, "batch_size": 1}
    assert json.loads(metadata[KEY]) == {"version": pack_version()}


def test_image_to_video_uploads_the_picture_to_an_address_without_a_scheme(run, server, tmp_path):
    Image.new("RGB", (70, 50), "teal").save(tmp_path / "teal.png")
    address = server.url.removeprefix("http://") + "/"
    done = run(I2V, "--image", "teal.png", "--size", "64x48", "--out", "videos", url=address)
    assert done.returncode == 0, done.stderr
    (video,) = (tmp_path / "videos").iterdir()
    assert done.stdout.strip() == str(Path("videos") / video.name)
    _, metadata = rate_and_metadata(video)
    (picture,) = (
        n["inputs"]["image"] for n in json.loads(metadata["prompt"]).values() if n["class_type"] == "LoadImage"
    )
    assert picture.startswith("teal")


def wrong_model(prompt: dict) -> None:
    next(n for n in prompt.values() if n["class_type"] == "TurboDiffusionLoader")["inputs"]["model_name"] = "none.pth"


def too_hot(prompt: dict) -> None:
    next(n for n in prompt.values() if n["class_type"] == "TestTextEmbedding")["inputs"]["width"] = 768


@pytest.mark.parametrize(
    ("options", "change", "says"),
    [
        ((), wrong_model, "TurboDiffusionLoader (node 2): Value not in list: model_name: 'none.pth'"),
        ((), too_hot, "TurboDiffusionSample (node 7): The text conditioning is 768 wide"),
        (("--image", "none.png"), None, "none.png cannot be read"),
        (("--size", "50x48"), None, "width and height must be multiples of 16"),
        (("--length", "8"), None, "the models make 4n+1 frames"),
        (("--length", "1", "--out", "file/fox.mp4"), None, "fox.mp4 cannot be written"),
    ],
    ids=["rejected", "failed", "no picture", "size", "length", "no folder"],
)
def test_what_goes_wrong_is_said(run, tmp_path, options, change, says):
    (tmp_path / "file").touch()
    done = run(T2V, *options, change=change)
    assert done.returncode != 0 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("url", ["", "http://", "http://[::1", "http://a b", "http://127.0.0.1:99999", "no server"])
def test_where_no_server_answers_it_is_said(run, url):
    done = run(T2V, url=url.replace("no server", f"http://127.0.0.1:{free_port()}"))
    assert done.returncode == 1 and done.stderr.startswith("ComfyUI does not answer at http://")
    assert len(done.stderr.splitlines()) == 1


async def without_websockets(request: web.Request) -> web.StreamResponse:
    """A proxy below /base that lets everything else pass."""
    return web.json_response({}, status=403 if "/ws" in request.path else 200)


FILE = '{"filename": %s, "subfolder": "", "type": "output"}'
HISTORY = '{"PROMPT_ID": {"outputs": {"1": {"images": [%s]}}}}'
HOSTILE = {
    "page": (dict(system_stats="<html></html>"), "is not a ComfyUI: give its address"),
    "proxy": (dict(base=without_websockets), "does not accept websockets"),
    "list": (dict(prompt="[]"), "is not a ComfyUI"),
    "no id": (dict(prompt='{"prompt_id": 5}'), "is not a ComfyUI"),
    "deep": (dict(system_stats="[" * 100_000), "is not a ComfyUI"),
    "events": (dict(ws='{"type": "execution_error", "data": {"prompt_id": "PROMPT_ID"}}'), "None (node None): None"),
    "long": (
        dict(ws=json.dumps({"type": "execution_error", "data": {"prompt_id": "PROMPT_ID", "node_id": "x" * 9999}})),
        " ...",
    ),
    "history": (dict(history='{"PROMPT_ID": []}'), "is not a ComfyUI"),
    "outputs": (dict(history='{"PROMPT_ID": {"outputs": {"1": 5, "2": {"images": [5, null]}}}}'), "saved no file"),
    "no name": (dict(history=HISTORY % FILE % "null"), "is not a ComfyUI"),
    "folder": (dict(history=HISTORY % FILE % '"../.."'), "The server names a file"),
    "surrogate": (dict(history=HISTORY % FILE % ('"' + "\\ud800" * 300 + '"')), "cannot be written"),
}


@pytest.mark.parametrize(("answers", "says"), HOSTILE.values(), ids=HOSTILE)
def test_a_server_that_misbehaves_is_one_sentence(run, answers, says):
    with served(ScriptedServer(**answers)) as (url,):
        done = run(T2V, "--out", "videos", url=url + "/base" * ("base" in answers))
    assert done.returncode == 1 and says in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr) < 5000


@pytest.mark.parametrize("text", ["[1]", "{}", '{"1": 3}', '{"nodes": [], "links": []}', '{"1": {"class_type": "A"}}'])
def test_what_is_no_api_workflow_is_said(run, text):
    done = run(T2V, text=text)
    assert done.returncode == 1 and "workflow.json is not in API format" in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""A draft through a live server: a small VAE where ComfyUI expects it, and both decode nodes after Sample."""

from pathlib import Path

import pytest
from PIL import Image
from td_pack.tests.support import checkpoints, vaes, workflows
from td_pack.tests.support.jobs import empty, node, t2v_job
from td_pack.tests.support.videos import packets

pytestmark = pytest.mark.server


def test_a_small_vae_decodes_what_sample_made_as_comfyui_does(server):
    vaes.write_draft(server.models_dir)
    decode = {"samples": ["sample", 0], "vae": ["vae", 0]}
    job = t2v_job("draft", latent=empty(length=5)) | {
        "vae": node("VAELoader", vae_name=checkpoints.DRAFT_VAE),
        "ours": node("TurboDiffusionVAEDecode", **decode),
        "stock": node("VAEDecode", **decode),
        "video": node("TurboDiffusionVAEDecodeVideo", **decode, fps=16),
        "stock video": node("CreateVideo", images=["stock", 0], fps=16),
    }
    for kind in ("ours", "stock"):
        job[f"save {kind}"] = node("SaveImage", images=[kind, 0], filename_prefix=kind)
    for kind in ("video", "stock video"):
        job[f"save {kind}"] = node("SaveVideo", video=[kind, 0], filename_prefix=kind, format="auto", codec="auto")
    result = server.client.run(job)

    def saved(kind: str) -> list[Path]:
        files = result.outputs[f"save {kind}"]["images"]
        return [server.output_dir / file["subfolder"] / file["filename"] for file in files]

    ours, theirs = ([Image.open(path).tobytes() for path in saved(kind)] for kind in ("ours", "stock"))
    assert len(ours) == 5 and ours == theirs
    ours, theirs = (packets(*saved(kind)) for kind in ("video", "stock video"))
    assert len(ours) == 5 and ours == theirs
    for decoder in ("ours", "video"):
        # ComfyUI from about 0.34 on leaves out what lies between two close ones: only the first and the last are sure.
        progress = [(p["value"], p["max"]) for p in result.of("progress") if p["node"] == decoder]
        assert progress == [(1, 2), (2, 2)]


def test_after_the_draft_of_the_template_another_vae_samples_nothing_again(server):
    vaes.write_draft(server.models_dir)
    shipped = workflows.load("TurboWan2.1-T2V-1.3B-Draft-480P")
    prompt = workflows.fit(shipped, models=workflows.TINY_FILES, width=64, height=48, length=5)
    keys = {node["class_type"]: key for key, node in prompt.items()}
    draft = server.client.run(prompt)
    assert keys["TurboDiffusionSample"] in draft.executed_nodes
    prompt[keys["VAELoader"]]["inputs"]["vae_name"] = checkpoints.VAE
    again = server.client.run(prompt)
    assert set(again.executed_nodes) == {
        keys[name] for name in ("VAELoader", "TurboDiffusionVAEDecodeVideo", "SaveVideo")
    }

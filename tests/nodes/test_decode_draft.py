"""A draft through a live server: a small VAE where ComfyUI expects it, and both decode nodes after Sample."""

from pathlib import Path

import pytest
from PIL import Image
from td_pack.tests.support import checkpoints, vaes
from td_pack.tests.support.jobs import empty, node, t2v_job
from td_pack.tests.support.videos import packets

NAME = "lighttaew2_1.safetensors"


@pytest.mark.server
def test_a_small_vae_decodes_what_sample_made_as_comfyui_does(server):
    checkpoints.write_safetensors(server.models_dir / "vae_approx" / NAME, vaes.taehv_state_dict())
    decode = {"samples": ["sample", 0], "vae": ["vae", 0]}
    job = t2v_job("draft", latent=empty(length=5)) | {
        "vae": node("VAELoader", vae_name=NAME),
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

"""Two ComfyUI servers on one user folder, with the same models and output folder."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.jobs import empty, encoded, loader, node, sampled, saved, t2v_job
from td_pack.tests.support.server import ComfyServer
from td_pack.tests.support.text_encoders import SMALL_T2V
from td_pack.turbo_core.convert.output import PARTIAL

pytestmark = pytest.mark.server


@pytest.fixture
def second(text_server, tmp_path):
    (tmp_path / "models").symlink_to(text_server.models_dir)
    shared = ("--user-directory", str(text_server.base / "user"), "--output-directory", str(text_server.output_dir))
    with ComfyServer(tmp_path, test_nodes=True, extra_arguments=shared) as running:
        yield running


def job(server: str) -> dict:
    """A prompt that both encode, one of this server alone, a video, and a conversion into the shared folder."""
    decode = dict(samples=["sample", 0], vae=["vae", 0])
    return t2v_job(
        f"two {server}",
        model=loader(SMALL_T2V),
        latent=empty(16, 16, 1),
        sample=sampled(steps=1),
        text=encoded(words="both read this prompt"),
        own=encoded(words=f"only {server} reads this"),
        shown=node("PreviewAny", source=["own", 0]),
        vae=node("VAELoader", vae_name=checkpoints.VAE),
        video=node("TurboDiffusionVAEDecodeVideo", **decode, fps=16.0),
        kept=node("SaveVideo", video=["video", 0], filename_prefix=f"two {server}", format="auto", codec="auto"),
        convert=node(
            "TurboDiffusionConvert", model_name=SMALL_T2V, output_name=f"two/{server}", weights="bf16", overwrite=True
        ),
    )


def test_both_run_at_the_same_time_and_lose_nothing(text_server, second):
    servers = {"first": text_server, "second": second}
    cache = text_server.base / "user" / "turbodiffusion" / "text_cache"
    before = len(list(cache.glob("*")))

    with ThreadPoolExecutor() as threads:
        files = dict(
            zip(servers, threads.map(lambda name: servers[name].client.run(job(name)).files, servers), strict=True)
        )
    for name, listed in files.items():
        assert len(listed) == 2 and all(servers[name].client.view(file) for file in listed)
        # A decoded video waits in the temp folder of its server until that server is started again.
        assert list((servers[name].base / "temp").glob("*.mp4"))
    assert torch.equal(saved(text_server, "two first"), saved(text_server, "two second"))
    assert len(list(cache.glob("*"))) - before == 3
    converted = {path.name for path in (text_server.models_dir / "diffusion_models" / "two").iterdir()}
    assert converted == {"first.safetensors", "second.safetensors"}
    assert not list(text_server.base.rglob(f"*{PARTIAL}"))

"""Prompts encoded, kept and read again by a live server."""

import os

import pytest
import torch
from td_pack.tests.support import text_encoders
from td_pack.tests.support.client import ExecutionFailed
from td_pack.tests.support.jobs import encoded, loader, node, saved, t2v_job
from td_pack.tests.support.text_encoders import SMALL_T2V

pytestmark = pytest.mark.server
FROM_CACHE = "The encoded prompt was read from the cache"


@pytest.fixture
def cache(text_server):
    """The folder of the cache, empty."""
    folder = text_server.base / "user" / "turbodiffusion" / "text_cache"
    for path in folder.glob("*"):
        path.unlink()
    return folder


def job(prefix: str, **encoder) -> dict:
    return t2v_job(prefix, model=loader(SMALL_T2V), text=encoded(**encoder))


def forget(server) -> None:
    """Empties ComfyUI's own caches of node outputs and models: the next prompt starts as on a fresh server."""
    server.client.post("/free", {"unload_models": True, "free_memory": True})
    server.client.run({"wait": node("TestResident")})  # the flags are seen to after this prompt at the latest


def test_a_second_run_needs_no_encoder_file(text_server, cache):
    path = text_encoders.write_small(text_server.models_dir, "volatile.safetensors", seed=5)
    text_server.client.run(job("text first", name=path.name))
    assert len(list(cache.iterdir())) == 1
    first = saved(text_server, "text first")
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)  # what it held is gone; by name, size and time it is the same file
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    forget(text_server)
    log_before = len(text_server.log())
    again = text_server.client.run(
        job("text again", name=path.name) | {"resident": node("TestResident", any=["save", 0])}
    )
    assert {"text", "sample"} <= set(again.executed_nodes)
    assert FROM_CACHE in text_server.log()[log_before:]
    assert torch.equal(saved(text_server, "text again"), first)
    assert again.outputs["resident"]["text"][0].startswith("0 text encoders; loaded: TurboWAN")
    with pytest.raises(ExecutionFailed, match="volatile.safetensors is not a readable safetensors file"):
        text_server.client.run(job("text other", name=path.name, words="another prompt"))


def test_without_the_cache_nothing_is_kept_and_the_encoder_is_freed_before_sampling(text_server, cache):
    prompt = job("text uncached", cache=False)
    prompt["resident"] = node("TestResident", any=["text", 0])
    result = text_server.client.run(prompt)
    assert result.outputs["resident"]["text"][0].startswith("0 text encoders;")
    assert not cache.exists() or not list(cache.iterdir())

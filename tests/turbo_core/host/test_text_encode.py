"""Encoding through ComfyUI's umT5: the same bits as its own nodes, from the cache too, and nothing left in memory."""

import gc
import logging
import os
import weakref

import comfy.model_management
import comfy.sd
import pytest
import torch
from td_pack.tests.support import text_encoders
from td_pack.turbo_core.errors import CheckpointError
from td_pack.turbo_core.host import text_encode
from td_pack.turbo_core.host.text_encode import text_conditioning
from td_pack.turbo_core.text_cache import TextCache

TEXTS = [
    "",
    text_encoders.PROMPT,
    "a (red:1.4) disc \\(round\\)",
    "quiet lake " * 120,
    "caf\u00e9 \u7ea2\u8272 \U0001f98a",
]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return text_encoders.write_small(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def cache(tmp_path):
    return TextCache(tmp_path / "cache")


def stock(path, text: str) -> list:
    """What CLIPLoader (type wan) and CLIPTextEncode do; only the sizes are told, since those of a small file are not umT5-XXL's."""
    sizes = {"d_model": 8, "d_kv": 4, "num_heads": 2, "vocab_size": vocabulary(path)}
    clip = comfy.sd.load_clip([str(path)], None, comfy.sd.CLIPType.WAN, model_options={"umt5xxl_model_config": sizes})
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def vocabulary(path) -> int:
    import safetensors

    with safetensors.safe_open(path, "pt") as file:
        return file.get_slice("shared.weight").get_shape()[0]


def same(a: list, b: list) -> bool:
    (a_cond, a_options), (b_cond, b_options) = *a, *b
    bits = a_cond.shape == b_cond.shape and torch.equal(a_cond.view(torch.int32), b_cond.view(torch.int32))
    return bits and a_cond.dtype == b_cond.dtype and a_options == b_options


@pytest.mark.parametrize("text", TEXTS, ids=["empty", "plain", "weighted", "long", "unknown letters"])
def test_the_conditioning_is_comfyui_s_bit_for_bit(encoder, cache, text):
    expected = stock(encoder, text)
    first = text_conditioning(encoder, "e", text, [], cache)
    kept = text_conditioning(encoder, "e", text, [], cache)
    uncached = text_conditioning(encoder, "e", text, [])
    assert expected[0][0].abs().max() > 0.1 and expected[0][0].shape[1] >= 512
    assert same(first, expected) and same(kept, expected) and same(uncached, expected)


def test_a_kept_prompt_reads_nothing_of_the_encoder(tmp_path, cache):
    path = text_encoders.write_small(tmp_path)
    first = text_conditioning(path, "e", "a red disc", [], cache)
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)  # no encoder any more, to the eye the same file
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(text_conditioning(path, "e", "a red disc", [], cache), first)
    for store, text in ((cache, "another"), (None, "a red disc")):
        with pytest.raises(CheckpointError):
            text_conditioning(path, "e", text, [], store)


def test_what_changes_the_result_changes_the_key(tmp_path, cache, monkeypatch):
    path = text_encoders.write_small(tmp_path)
    keys = {text_encode._key(path, "e", "a"), text_encode._key(path, "e", "b"), text_encode._key(path, "other", "a")}
    os.utime(path, ns=(1, 1))
    keys.add(text_encode._key(path, "e", "a"))
    monkeypatch.setattr(text_encode, "VERSION", text_encode.VERSION + 1)
    keys.add(text_encode._key(path, "e", "a"))
    assert len(keys) == 5
    assert text_encode._key(path, "folder\\e", "a") == text_encode._key(path, "folder/e", "a")


def test_another_file_under_the_name_is_encoded_with(tmp_path, cache):
    path = text_encoders.write_small(tmp_path)
    first = text_conditioning(path, "e", "a red disc", [], cache)
    text_encoders.write_small(tmp_path, seed=2)
    assert not same(text_conditioning(path, "e", "a red disc", [], cache), first)


def test_a_prompt_that_names_an_embedding_file_is_not_kept(encoder, cache, tmp_path):
    """Its content can change without the key."""
    text_conditioning(encoder, "e", "a disc embedding:nothing", [str(tmp_path)], cache)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_entry_is_encoded_again(encoder, cache, tmp_path, caplog):
    first = text_conditioning(encoder, "e", "a red disc", [], cache)
    (entry,) = (tmp_path / "cache").iterdir()
    content = entry.read_bytes()
    for damaged in (b"", content[:100], content[:-1], content[:-9] + b"\1" + content[-8:], b"\xff" * 50):
        entry.write_bytes(damaged)
        with caplog.at_level(logging.WARNING, "turbodiffusion"):
            assert same(text_conditioning(encoder, "e", "a red disc", [], cache), first)
        assert "is damaged" in caplog.text
        caplog.clear()
        assert entry.read_bytes() == content


def test_the_encoder_is_gone_when_its_work_is_done(encoder, monkeypatch):
    alive = []
    load = comfy.sd.load_clip

    def watched(*args, **kwargs):
        clip = load(*args, **kwargs)
        alive.extend(weakref.ref(thing) for thing in (clip.patcher, clip.cond_stage_model))
        return clip

    monkeypatch.setattr(comfy.sd, "load_clip", watched)
    gc.collect()
    gc.disable()  # gone by itself, not when the collector comes round
    try:
        text_conditioning(encoder, "e", "a red disc", [])
        assert len(alive) == 2 and not any(ref() is not None for ref in alive)
        assert not [
            m
            for m in comfy.model_management.current_loaded_models
            if m.model is None or "T5" in type(m.model.model).__name__
        ]
    finally:
        gc.enable()

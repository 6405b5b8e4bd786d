"""Encoding through ComfyUI's umT5: the same bits as its own nodes, from the cache too, and nothing left in memory."""

import gc
import os
import sys
import weakref

import comfy.model_management
import comfy.sd
import pytest
import safetensors.torch
import torch
from td_pack.tests.support import checkpoints, text_encoders
from td_pack.turbo_core.errors import CheckpointError
from td_pack.turbo_core.host import text_encode
from td_pack.turbo_core.host.text_encode import text_conditioning
from td_pack.turbo_core.text_cache import TextCache

# Empty; weights, escapes, and letters the tokenizer does not know; more than 512 tokens.
TEXTS = ["", "a (red:1.4) disc \\(round\\) caf\u00e9 \u7ea2\u8272 \U0001f98a", "quiet lake " * 60]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return text_encoders.write_small(tmp_path_factory.mktemp("encoders"))


@pytest.fixture
def cache(tmp_path):
    return TextCache(tmp_path / "cache")


def stock(path, text: str) -> list:
    """What CLIPLoader (type wan) and CLIPTextEncode do; only the sizes are told, since those of a small file are not
    umT5-XXL's."""
    vocabulary = safetensors.torch.load_file(path)["shared.weight"].shape[0]
    sizes = {"d_model": 8, "d_kv": 4, "num_heads": 2, "vocab_size": vocabulary}
    clip = comfy.sd.load_clip([str(path)], None, comfy.sd.CLIPType.WAN, model_options={"umt5xxl_model_config": sizes})
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def same(a: list, b: list) -> bool:
    (a_cond, a_options), (b_cond, b_options) = *a, *b
    bits = a_cond.shape == b_cond.shape and torch.equal(a_cond.view(torch.int32), b_cond.view(torch.int32))
    return bits and a_cond.dtype == b_cond.dtype and a_options == b_options


@pytest.mark.parametrize("text", TEXTS, ids=["empty", "weighted", "long"])
def test_the_conditioning_is_comfyui_s_bit_for_bit(encoder, cache, text):
    expected = stock(encoder, text)
    assert expected[0][0].abs().max() > 0.1 and expected[0][0].shape[1] >= 512
    for _ in ("encoded", "kept"):
        assert same(text_conditioning(encoder, "e", text, [], cache), expected)


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


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_weights_stay_in_the_file_s_mapping(tmp_path, dtype):
    """The embedding of the published file is 2 GB, its linears are 9."""
    path = checkpoints.write_safetensors(tmp_path / "e.safetensors", text_encoders.small_state_dict(dtype=dtype))
    network = text_encode._load(path, []).cond_stage_model.umt5xxl.transformer
    maps = [line.split()[0] for line in open("/proc/self/maps") if str(path) in line]
    ranges = [tuple(int(end, 16) for end in span.split("-")) for span in maps]
    for name, weight in network.named_parameters():
        assert weight.dtype == dtype
        assert any(start <= weight.data_ptr() < end for start, end in ranges), name


def test_a_prompt_that_names_an_embedding_file_is_not_kept(encoder, cache, tmp_path):
    """Its content can change without the key."""
    text_conditioning(encoder, "e", "a disc embedding:nothing", [str(tmp_path)], cache)
    assert not (tmp_path / "cache").exists()


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

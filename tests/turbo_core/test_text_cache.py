"""The cache of encoded prompts: whole entries or none, a bound on their size, and no error that reaches a job."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import safetensors.torch
import torch
from td_pack.tests.support import hostile
from td_pack.tests.support.videos import largest_file
from td_pack.turbo_core.text_cache import TextCache, cache_key

ENTRY = {"cond": torch.arange(1024.0).reshape(1, 32, 32)}  # about 4 kB with its header


@pytest.fixture
def cache(tmp_path):
    return TextCache(tmp_path / "a" / "b")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.glob("*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_come_back_bit_for_bit(cache, dtype):
    tensors = {"cond": torch.randn(1, 7, 3).to(dtype), "empty": torch.zeros(0, 4), "one": torch.tensor(-0.0)}
    assert cache.get("k") is None
    cache.put("k", tensors)
    kept = cache.get("k")
    assert kept.keys() == tensors.keys()
    for name, value in tensors.items():
        assert kept[name].dtype == value.dtype and kept[name].shape == value.shape
        assert kept[name].contiguous().flatten().view(torch.uint8).equal(value.flatten().view(torch.uint8))


def test_a_damaged_entry_is_absent_and_goes(cache, tmp_path, caplog):
    cache.put("k", ENTRY)
    (path,) = (tmp_path / "a" / "b").iterdir()
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]
    unsummed = safetensors.torch.save(ENTRY)
    for damaged in (b"", whole[:100], whole[:-1], whole + b"x", flipped, unsummed, b"\xff" * 50, b"<html>" * 99):
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING, "turbodiffusion"):
            assert cache.get("k") is None
        assert "is damaged" in caplog.text and not path.exists()
        caplog.clear()
    cache.put("k", ENTRY)
    assert path.read_bytes() == whole


def test_a_key_is_a_file_name_of_everything_in_it():
    assert cache_key(text="../\n\0x", size=1) == cache_key(size=1, text="../\n\0x")
    assert (
        len({cache_key(text="a", size=1), cache_key(text="a", size=2), cache_key(text="b", size=1), cache_key(a=1)})
        == 4
    )
    assert cache_key(text="../").isalnum()


def test_the_entries_unused_for_longest_go_first(tmp_path):
    cache = TextCache(tmp_path, limit=14_000)
    for i, key in enumerate("abc"):
        cache.put(key, ENTRY)
        os.utime(tmp_path / f"{key}.safetensors", (1000 + i, 1000 + i))
    assert cache.get("a") is not None  # used now: b is the oldest
    cache.put("d", ENTRY)
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 14_000


def test_an_entry_over_the_limit_is_not_kept_and_drops_nothing(tmp_path):
    cache = TextCache(tmp_path, limit=5_000)
    cache.put("a", ENTRY)
    cache.put("b", {"cond": torch.zeros(5_000)})
    assert names(tmp_path) == ["a.safetensors"]


def test_what_a_killed_process_left_is_removed(cache, tmp_path):
    cache.put("a", ENTRY)
    folder = tmp_path / "a" / "b"
    (folder / "x.safetensors.00000000.partial").write_bytes(b"half")
    cache.put("b", ENTRY)
    assert names(folder) == ["a.safetensors", "b.safetensors"]


def test_a_fifo_in_place_of_an_entry_is_absent(cache, tmp_path):
    cache.put("k", ENTRY)
    (path,) = (tmp_path / "a" / "b").iterdir()
    hostile.fifo(path)
    with hostile.limits():
        assert cache.get("k") is None


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("not a folder")
    cache = TextCache(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "turbodiffusion"):
        cache.put("k", ENTRY)
        assert cache.get("k") is None
    assert "was not kept" in caplog.text


def test_a_full_disk_is_a_warning_and_leaves_nothing(cache, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "turbodiffusion"), largest_file(1000):
        cache.put("k", ENTRY)
    assert "The disk became full" in caplog.text
    assert names(tmp_path / "a" / "b") == [] and cache.get("k") is None


def test_servers_may_share_the_folder(tmp_path, caplog):
    """Reading, writing and dropping at once: an entry is whole or absent."""

    def use(cache: TextCache) -> None:
        for i in range(40):
            cache.put(f"k{i % 12}", {"cond": torch.full((1000,), float(i % 12))})
            kept = cache.get(f"k{(i * 7) % 12}")
            assert kept is None or bool((kept["cond"] == (i * 7) % 12).all())

    with caplog.at_level(logging.WARNING, "turbodiffusion"), ThreadPoolExecutor(3) as servers:
        list(servers.map(use, [TextCache(tmp_path, limit=30_000) for _ in range(3)]))
    assert not caplog.messages
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 30_000 + 3 * 4_200

"""The mp4 that a decode goes into is whole or not there. That it is ComfyUI's own: tests/nodes/test_decode.py."""

import threading
from fractions import Fraction
from functools import partial

import pytest
import torch
from td_pack.nodes.decode import encode_mp4
from td_pack.tests.support import vaes
from td_pack.tests.support.videos import largest_file, noise, pixels
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.host.decode_video import decode_video, encoding
from td_pack.turbo_core.video import room_in

ENCODE = partial(encode_mp4, frame_rate=Fraction(16))


def test_frames_are_encoded_as_they_arrive(tmp_path):
    frames, path = torch.zeros(40, 64, 64, 3, dtype=torch.uint8), tmp_path / "a.mp4"
    with encoding(frames, path, ENCODE) as arrived:
        frames[:30] = noise(30)
        arrived(30)
        arrived(1)  # a decode that ran out of memory starts anew
        assert not is_whole(path)
        frames[30:] = noise(40)[30:]
        arrived(40)
    assert len(pixels(path)) == 40


def is_whole(path) -> bool:
    """Whether the file has its index already, which the encoder writes last."""
    return path.exists() and b"moov" in path.read_bytes()


def test_no_room_for_the_mp4_is_one_sentence_and_leaves_nothing(tmp_path):
    frames, path = noise(), tmp_path / "a.mp4"
    with largest_file(20_000), pytest.raises(TurboError, match="could not be written"), room_in(tmp_path):
        with encoding(frames, path, ENCODE) as arrived:
            arrived(len(frames))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stops_the_decode(tmp_path):
    frames = noise()
    with largest_file(20_000), pytest.raises(OSError), encoding(frames, tmp_path / "a.mp4", ENCODE) as arrived:
        while True:  # a decoder that would go on for ever
            arrived(len(frames))


def test_a_decode_that_is_broken_off_leaves_no_file_and_no_thread(tmp_path):
    vae, before = vaes.wan21(), threading.active_count()
    seen = []

    def interrupt(module, args) -> None:
        seen.append(args)
        if len(seen) == 2:
            raise KeyboardInterrupt

    vae.first_stage_model.decoder.conv1.register_forward_pre_hook(interrupt)
    with torch.inference_mode(), pytest.raises(KeyboardInterrupt):
        decode_video(vae, torch.randn(1, 16, 3, 4, 6), tmp_path, ENCODE)
    assert not list(tmp_path.iterdir()) and threading.active_count() == before

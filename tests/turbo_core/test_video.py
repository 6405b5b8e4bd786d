"""Frames in a file, and an mp4 that is whole or not there. That the mp4 is ComfyUI's own: tests/nodes/test_decode.py."""

import resource
from contextlib import contextmanager
from fractions import Fraction

import pytest
import torch
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.video import Mp4Writer, frame_file, room_in


@contextmanager
def largest_file(size: int):
    """A limit on the size of a file, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


def test_frames_in_a_file_keep_their_values_and_leave_no_name(tmp_path):
    frames = frame_file(tmp_path / "new", (40, 64, 64, 3))
    frames.copy_(noise())
    assert torch.equal(frames, noise()) and not list((tmp_path / "new").iterdir())


def test_no_room_for_the_frames_is_one_sentence(tmp_path):
    with (
        largest_file(1000),
        pytest.raises(TurboError, match=f"could not be written to {tmp_path} .*: free some space there"),
    ):
        with room_in(tmp_path):
            frame_file(tmp_path, (40, 64, 64, 3))
    assert not list(tmp_path.iterdir())


def test_no_room_for_the_mp4_is_one_sentence_and_leaves_nothing(tmp_path):
    frames = noise()
    with largest_file(20_000), pytest.raises(TurboError, match="could not be written"), room_in(tmp_path):
        with Mp4Writer(str(tmp_path / "a.mp4"), 64, 64, Fraction(16)) as writer:
            writer.write(frames)
    assert not list(tmp_path.iterdir())


def test_a_video_that_is_broken_off_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), Mp4Writer(str(tmp_path / "a.mp4"), 64, 64, Fraction(16)) as writer:
        writer.write(noise())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())

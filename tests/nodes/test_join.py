"""Joined segments: the frames and the file of the whole video, in the memory of one frame."""

from fractions import Fraction

import pytest
import torch
from comfy_api.latest import InputImpl, Types
from td_pack.nodes.decode import DecodedVideo, encode_mp4
from td_pack.nodes.join import JoinedVideo, TurboDiffusionJoinVideo
from td_pack.tests.support.allocations import PeakBytes
from td_pack.tests.support.tensors import draw
from td_pack.tests.support.videos import packets
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.video import LazyImages, frame_file

RATE, LENGTH, OVERLAP = Fraction(16), 9, 5


def segment(folder, seed, height=32):
    frames = frame_file(folder, (LENGTH, height, 48, 3))
    frames.copy_((draw(LENGTH, height, 48, 3, seed=seed).sigmoid() * 255).byte())
    encode_mp4(LazyImages(frames), folder / f"{seed}.mp4", RATE)
    return DecodedVideo(folder / f"{seed}.mp4", frames, RATE)


def joined(folder, count):
    """A chain of so many segments, and their frames in one tensor."""
    video, frames = None, []
    for seed in range(count):
        part = segment(folder, seed)
        video, last = TurboDiffusionJoinVideo.execute(part, OVERLAP, video).args
        images = part.get_components().images
        assert torch.equal(last, images[-OVERLAP:])
        frames.append(images[OVERLAP if seed else 0 :])
    return video, torch.cat(frames)


def test_the_video_is_all_frames_once(tmp_path):
    video, frames = joined(tmp_path, 3)
    assert torch.equal(video.get_components().images, frames) and len(frames) == 9 + 4 + 4
    assert (video.get_dimensions(), video.get_frame_count()) == ((48, 32), 17)
    assert (video.get_frame_rate(), video.get_duration()) == (RATE, 17 / 16)
    stock = InputImpl.VideoFromComponents(Types.VideoComponents(images=frames, frame_rate=RATE))
    video.save_to(str(tmp_path / "ours.mp4"))
    stock.save_to(str(tmp_path / "stock.mp4"))
    assert packets(tmp_path / "ours.mp4") == packets(tmp_path / "stock.mp4")


def test_memory_does_not_grow_with_the_number_of_segments(tmp_path):
    peaks = []
    for count in (1, 3, 6):
        video, _ = joined(tmp_path, count)
        with PeakBytes() as memory:
            assert video.get_dimensions() == (48, 32)
            video.save_to(str(tmp_path / "joined.mp4"))
        peaks.append(memory.peak - count * LENGTH * 32 * 48 * 3)  # what is mapped from the segments' files
    assert peaks[0] == peaks[1] == peaks[2] > 0


def test_a_stock_video_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("folder_paths.get_temp_directory", lambda: str(tmp_path))
    images = draw(LENGTH, 32, 48, 4, seed=3).sigmoid()
    stock = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=RATE))
    video, last = TurboDiffusionJoinVideo.execute(stock, OVERLAP).args
    assert isinstance(video, JoinedVideo)
    torch.testing.assert_close(video.get_components().images, images[..., :3], rtol=0, atol=1 / 255)
    assert last.shape == (OVERLAP, 32, 48, 3)


@pytest.mark.parametrize(
    "overlap, height, message",
    [(9, 32, "has 9 frames and overlap is 9"), (5, 64, "is 48x64 at 16 frames a second and")],
)
def test_segments_that_do_not_fit_are_refused(tmp_path, overlap, height, message):
    with pytest.raises(TurboError, match=message):
        TurboDiffusionJoinVideo.execute(segment(tmp_path, 1, height), overlap, segment(tmp_path, 2))

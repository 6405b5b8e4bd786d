"""Frames in a file, and the images that are made of them one at a time."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from td_pack.tests.support.videos import largest_file, noise
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.video import ArrivingImages, LazyImages, frame_file, room_in


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


def test_lazy_images_are_the_frames_in_float32_one_at_a_time():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 16, 16, 3)
    images = LazyImages(levels)
    assert images.shape == (1, 16, 16, 3) and len(images) == 1
    (image,) = images
    assert image.dtype == torch.float32 and torch.equal(image, levels[0] / 255)
    # What ComfyUI's encoder does with an image, in 8 and in 10 bits.
    assert torch.equal((image * 255).clamp(0, 255).byte(), levels[0])
    assert torch.equal((image * 65535).clamp(0, 65535).int(), levels[0].int() * 257)


def test_lazy_images_answer_what_else_a_tensor_knows():
    images = LazyImages(noise(4))
    assert torch.equal(images[1:3, ..., :2], noise(4)[1:3, ..., :2] / 255) and images.ndim == 4
    assert torch.equal(images.cpu(), noise(4) / 255)
    assert copy.copy(images).shape == images.shape


def test_an_image_that_is_still_to_come_is_waited_for():
    frames = torch.zeros(3, 2, 2, 3, dtype=torch.uint8)
    images = ArrivingImages(frames)
    with ThreadPoolExecutor(2) as threads:
        each, whole = threads.submit(list, images), threads.submit(lambda: images[:])
        for i in range(3):
            frames[i] = i + 1
            images.arrived(i + 1)
    assert [int(image[0, 0, 0] * 255) for image in each.result()] == [1, 2, 3]
    assert torch.equal(whole.result(), frames / 255)


def test_an_image_that_never_comes_ends_the_wait():
    images = ArrivingImages(torch.zeros(3, 2, 2, 3, dtype=torch.uint8))
    images.arrived(1)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(list, images)
        images.abandon()
        with pytest.raises(EOFError):
            waiting.result()
    assert images[0].shape == (2, 2, 3)

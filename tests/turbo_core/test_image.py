"""Preparing a picture: the sizes, the channels, and what each fit keeps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.image import ASPECTS, BACKGROUNDS, FITS, SIZES, fit, prepare, resize, target_size, to_rgb

SIDES = st.integers(1, 300)


def picture(height: int, width: int, channels: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(height * 1000 + width))


@pytest.mark.parametrize(
    "width,height,resolution,size",
    [
        (1920, 1080, "480p", (848, 480)),  # 16:9 is not quite 832:480
        (1280, 720, "720p", (1280, 720)),
        (1000, 1000, "480p", (624, 624)),  # 631.9 / 16 = 39.5, to 39
        (1000, 1000, "720p", (960, 960)),
        (3000, 1000, "720p", (1664, 560)),
        (1, 10000, "480p", (16, 63200)),
    ],
)
def test_the_size_of_an_image_keeps_the_area(width, height, resolution, size):
    assert target_size(width, height, resolution, "image") == size


@given(SIDES, SIDES, st.sampled_from(list(SIZES)))
def test_any_image_gets_a_usable_size(width, height, resolution):
    wide, high = target_size(width, height, resolution, "image")
    assert wide % 16 == high % 16 == 0 and wide >= 16 and high >= 16
    area = math.prod(SIZES[resolution]["16:9"])
    exact = math.sqrt(area * width / height), math.sqrt(area * height / width)
    assert all(abs(side - want) <= 8 or side == 16 for side, want in zip((wide, high), exact, strict=True))


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 4), st.sampled_from(FITS), st.sampled_from(list(BACKGROUNDS))
)
@settings(max_examples=60, deadline=None)
def test_every_picture_becomes_rgb_of_the_size_within_its_own_values(height, width, channels, how, background):
    frame = to_rgb(picture(height, width, channels)[0], BACKGROUNDS[background])
    result = fit(frame, 48, 32, how, BACKGROUNDS[background])
    assert result.shape == (32, 48, 3) and result.dtype == torch.float32
    allowed = [frame.min(), frame.max(), *([torch.tensor(BACKGROUNDS[background])] if how == "pad" else [])]
    # Weights of a bilinear filter are positive and sum to 1, up to rounding.
    assert result.min() >= min(allowed) - 1e-5 and result.max() <= max(allowed) + 1e-5


@pytest.mark.parametrize(
    "height,width,box", [(10, 40, (10, 22, 0, 48)), (40, 10, (0, 32, 20, 28)), (32, 48, (0, 32, 0, 48))]
)
def test_a_pad_shows_the_whole_picture_in_the_middle(height, width, box):
    top, bottom, left, right = box
    result = fit(torch.zeros(height, width, 3), 48, 32, "pad", 1.0)
    expected = torch.ones(32, 48, 3)
    expected[top:bottom, left:right] = 0
    assert torch.equal(result, expected)


def test_a_crop_keeps_the_middle():
    frame = torch.zeros(32, 96, 3)
    frame[:, 24:72] = picture(32, 48, 3)[0]
    assert torch.equal(fit(frame, 48, 32, "crop", 0.0), frame[:, 24:72])


def test_resizing_is_the_references():
    transforms = pytest.importorskip("torchvision.transforms.v2")
    frame = picture(100, 70, 3)[0]
    expected = transforms.Resize((32, 48), antialias=True)(frame.movedim(-1, 0)).movedim(0, -1)
    torch.testing.assert_close(resize(frame, 48, 32), expected)


@pytest.mark.parametrize("background,value", BACKGROUNDS.items())
def test_what_is_transparent_shows_the_background(background, value):
    color, alpha = picture(4, 6, 3)[0], picture(4, 6, 1)[0]
    expected = color * alpha + value * (1 - alpha)
    torch.testing.assert_close(to_rgb(torch.cat([color, alpha], -1), value), expected)
    gray = color[..., :1]
    expected = (gray * alpha + value * (1 - alpha)).expand(4, 6, 3)
    torch.testing.assert_close(to_rgb(torch.cat([gray, alpha], -1), value), expected)


def test_rgb_of_the_right_size_passes_unchanged():
    image = picture(480, 832, 3, batch=2)
    result, width, height = prepare(image, "480p", "16:9", "stretch", "black")
    assert torch.equal(result, image) and (width, height) == (832, 480)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_size_is_reported(aspect):
    result, width, height = prepare(picture(30, 50, 4), "480p", aspect, "pad", "gray")
    assert result.shape == (1, height, width, 3)


@pytest.mark.parametrize("shape", [(30, 50), (2, 30, 50), (2, 30, 50, 1)])
def test_a_mask_counts_as_gray(shape):
    mask = torch.rand(shape)
    result, _, _ = prepare(mask, "480p", "1:1", "stretch", "black")
    assert result.shape == (shape[0] if len(shape) > 2 else 1, 640, 640, 3)
    assert torch.equal(result[..., 0], result[..., 1]) and torch.equal(result[..., 0], result[..., 2])


def test_a_batch_equals_single_pictures():
    batch = picture(20, 30, 4, batch=3)
    together, _, _ = prepare(batch, "480p", "1:1", "pad", "white")
    alone = [prepare(batch[i : i + 1], "480p", "1:1", "pad", "white")[0] for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_values_outside_the_range_are_cut():
    result, _, _ = prepare(torch.tensor([-1.0, 2.0]).view(1, 1, 2, 1), "480p", "16:9", "stretch", "black")
    assert result.min() == 0 and result.max() == 1


@pytest.mark.parametrize("shape", [(1, 8, 8, 5), (1, 8, 8, 0), (0, 8, 8, 3), (1, 0, 8, 3), (1, 2, 8, 8, 3), (8,)])
def test_what_is_no_picture_is_refused_in_one_sentence(shape):
    with pytest.raises(TurboError, match="connect one of"):
        prepare(torch.zeros(shape), "480p", "image", "stretch", "black")

"""PSNR and SSIM against scikit-image and closed forms; the pictures of them."""

import math

import numpy as np
import pytest
import torch
from PIL import ImageFont
from skimage import metrics
from td_pack.turbo_core import compare, plot
from td_pack.turbo_core.errors import TurboError

ROUNDING = (
    1e-9  # float64: an ulp of a second moment, 1e-16, beside SSIM's constant 9e-4; the inputs are float32 on both sides
)


def video(frames: int = 3, height: int = 20, width: int = 28, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(frames, height, width, channels, generator=torch.Generator().manual_seed(seed))


def near(frames: torch.Tensor, by: float, seed: int = 1) -> torch.Tensor:
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(seed))
    return (frames + by * noise).clamp(0, 1)


@pytest.mark.parametrize("by", [0.003, 0.05, 0.4])
@pytest.mark.parametrize("shape", [(20, 28), (11, 11), (33, 12)], ids=str)
def test_scores_are_scikit_images(by, shape):
    a = video(2, *shape)
    b = near(a, by)
    for score, one, other in zip(compare.scores(a, b), a.double().numpy(), b.double().numpy(), strict=True):
        expected = metrics.structural_similarity(
            one, other, data_range=1.0, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert score.ssim == pytest.approx(
            expected, abs=2e-5
        )  # float32 moments: 1e-7 beside the constants 1e-4 and 9e-4
        assert score.psnr == pytest.approx(metrics.peak_signal_noise_ratio(one, other, data_range=1.0), rel=1e-9)


@pytest.mark.parametrize("device, chosen", [("cuda:1", "cuda:1"), ("mps", "cpu"), ("xpu:0", "cpu"), ("cpu", "cpu")])
def test_it_is_computed_where_there_is_float64(device, chosen):
    assert compare.device_for(torch.device(device)) == torch.device(chosen)


def test_equal_frames_are_one_and_infinite():
    for value in (0.0, 0.5, 1.0):
        flat = torch.full((1, 16, 16, 3), value)
        (score,) = compare.scores(flat, flat.clone())
        assert score == compare.Score(0.0, 1.0) and score.psnr == math.inf


def test_a_constant_difference_has_its_closed_form():
    (score,) = compare.scores(torch.full((1, 16, 16, 3), 0.5), torch.full((1, 16, 16, 3), 0.75))
    assert score.psnr == pytest.approx(20 * math.log10(4))
    assert score.ssim == pytest.approx((2 * 0.5 * 0.75 + 1e-4) / (0.5**2 + 0.75**2 + 1e-4), abs=ROUNDING)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_are_compared_as_rgb(channels):
    a = video(1, channels=channels)
    b = near(a, 0.05)
    if channels == 4:
        a[..., 3] = b[..., 3] = 1
    rgb = [t[..., :3].expand(-1, -1, -1, 3) for t in (a, b)]
    assert list(compare.scores(a, b)) == list(compare.scores(*rgb))


def test_values_outside_the_range_count_as_they_are_shown():
    a = video(1)
    assert list(compare.scores(a, a + 2)) == list(compare.scores(a, torch.ones_like(a)))


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (video(3), video(2), r"a has 3 frames of 28x20 and b has 2 frames of 28x20: compare"),
        (video(1), video(1, 22), r"a has 1 frame of 28x20 and b has 1 frame of 28x22: compare"),
        (video(1, 10, 40), video(1, 10, 40), r"frames are 40x10, and SSIM needs at least 11x11"),
        (video(1)[0], video(1), r"a is \[20, 28, 3\]: connect frames"),
        (video(1), video(1)[:0], r"b is \[0, 20, 28, 3\]: connect frames"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(a, b, says):
    with pytest.raises(TurboError, match=says) as caught:
        compare.check(a, b)
    assert "\n" not in str(caught.value)


def test_no_numbers_are_named():
    a = video(3)
    a[2, 5, 5, 0] = math.nan
    with pytest.raises(TurboError, match="Frame 2 of a or b holds values that are no numbers"):
        list(compare.scores(a, video(3)))


def test_the_report_names_the_worst_frames():
    found = [compare.Score(1e-3, 0.9), compare.Score(4e-3, 0.95), compare.Score(1e-3, 0.8)]
    assert compare.report(found, ("dense", "sparse"), 832, 480).splitlines() == [
        "dense against sparse: 3 frames of 832x480",
        "PSNR 26.99 dB over all frames, lowest 23.98 dB at frame 1",  # -10 log10 of 2e-3 and of 4e-3
        "SSIM 0.8833 on average, lowest 0.8000 at frame 2",
    ]
    equal = compare.report([compare.Score(0.0, 1.0)], ("a", "b"), 16, 16).splitlines()
    assert equal[0].endswith("1 frame of 16x16") and equal[1] == "PSNR infinite: the frames are equal"


@pytest.mark.parametrize("height", [20, 21])
def test_the_videos_stand_side_by_side_below_their_names(height):
    a, b = video(2, height), video(2, height, channels=4, seed=4)
    b[..., 3] = 1
    strip = plot.captions(("dense", "sparse with a name that is far too long for its half"), 28, height)
    both = compare.beside(a, b, strip)
    top = len(strip)
    assert both.shape == (2, top + height, 56, 3) and both.dtype == torch.float32
    assert (top + height) % 2 == 0, "H.264 takes even heights only"
    assert torch.equal(both[:, top:, :28], a) and torch.equal(both[:, top:, 28:], b[..., :3])
    assert torch.equal(both[0, :top], strip) and torch.equal(both[1, :top], strip)


def test_labels_are_drawn_in_their_own_halves():
    empty, left, right, both = (
        plot.captions(labels, 200, 100) for labels in (("", ""), ("dense", ""), ("", "sparse"), ("x" * 99, ""))
    )
    assert torch.equal(left[:, 200:], empty[:, 200:]) and not torch.equal(left, empty)
    assert torch.equal(right[:, :200], empty[:, :200]) and not torch.equal(right, empty)
    assert torch.equal(both[:, 200:], empty[:, 200:]) and not torch.equal(both, empty)


@pytest.mark.parametrize("label", ["x" * 4000, "i" * 100_000, "a b\n" * 5000])
def test_a_long_label_is_measured_a_few_times(label, monkeypatch):
    measured = []
    length = ImageFont.FreeTypeFont.getlength
    monkeypatch.setattr(
        ImageFont.FreeTypeFont, "getlength", lambda font, text: measured.append(len(text)) or length(font, text)
    )
    strip = plot.captions((label, "b"), 800, 100)
    assert sum(measured) < 20_000
    assert not torch.equal(strip, plot.captions((label[0], "b"), 800, 100))
    report = compare.report([compare.Score(0.0, 1.0)], (label, label), 16, 16)
    assert len(report) < 600 and len(report.splitlines()) == 3


@pytest.mark.parametrize(
    "low, high", [(0, 1), (0.8, 0.97), (27.3, 31.9), (31.2, 31.2), (0, 80), (0.99991, 0.99996), (-0.2, 1)]
)
def test_ticks_are_round_and_span_the_values(low, high):
    found = plot.ticks(low, high)
    assert found[0] <= low + 1e-9 and found[-1] >= high - 1e-9 and 2 <= len(found) <= plot.TICKS + 2
    steps = np.diff(found)
    assert steps == pytest.approx(steps[0])
    assert f"{steps[0]:.0e}"[0] in "125"


@pytest.mark.parametrize(
    "values",
    [[30.0, 25.0, 28.0], [30.0], [math.inf, 30.0], [math.inf] * 3, [math.inf], [25.0] * 4, [30.0] * 161],
    ids=str,
)
def test_any_values_have_a_plot(values):
    picture = plot.curves([("PSNR (dB)", "{:.4g}", values), ("SSIM", "{:.4g}", [1.0] * len(values))])
    assert picture.shape == (plot.HEIGHT, plot.WIDTH, 3) and picture.dtype == torch.float32
    assert 0 <= picture.min() and picture.max() <= 1


def test_the_curve_goes_where_the_values_go():
    def line(values):
        picture = plot.curves([("x", "{:.4g}", values)])
        blue = (picture * 255).round().int()[:, :, 2] > 250  # LINE alone is so blue
        return [int(column.nonzero().float().mean()) for column in (blue[:, 95], blue[:, plot.WIDTH - 36])]

    start, end = line([10.0, 20.0])
    assert start > end, "a larger value stands higher"
    start, end = line([20.0, 10.0])
    assert start < end

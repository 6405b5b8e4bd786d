"""Compares two videos: PSNR and SSIM of each frame, and both side by side."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange

from .errors import TurboError, bounded
from .image import to_rgb

WINDOW = 11  # pixels of SSIM's Gaussian window, whose sigma is 1.5 (Wang et al. 2004)

_LABEL = 200  # characters of a label in the report


@dataclass(frozen=True)
class Score:
    """Two frames of values 0 to 1: their mean squared error and their structural similarity (1: equal)."""

    mse: float
    ssim: float

    @property
    def psnr(self) -> float:
        """Peak signal-to-noise ratio in dB; infinite for equal frames."""
        return psnr(self.mse)


def psnr(mse: float) -> float:
    """dB of a mean squared error of values 0 to 1."""
    return -10 * math.log10(mse) if mse else math.inf


def check(a: torch.Tensor, b: torch.Tensor) -> None:
    """Raises TurboError unless both are IMAGEs [frames, height, width, channels] of one length and size."""
    for name, video in (("a", a), ("b", b)):
        if video.ndim != 4 or video.shape[-1] not in (1, 2, 3, 4) or 0 in video.shape:
            raise TurboError(
                f"{name} is {list(video.shape)}: connect frames, an IMAGE of [frames, height, width, channels]."
            )
    if a.shape[:3] != b.shape[:3]:
        raise TurboError(
            f"a has {_size(a)} and b has {_size(b)}: compare videos of one length and size (Image From Batch and "
            "Upscale Image "
            "make them so)."
        )
    if min(a.shape[1:3]) < WINDOW:
        raise TurboError(f"The frames are {a.shape[2]}x{a.shape[1]}, and SSIM needs at least {WINDOW}x{WINDOW} pixels.")


def _size(video: torch.Tensor) -> str:
    frames, height, width, _ = video.shape
    return f"{frames} frame{'s' * (frames > 1)} of {width}x{height}"


def device_for(device: torch.device) -> torch.device:
    """The device for `scores`: the given one if it has float64 for certain (MPS and XPU may not), else the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")


def scores(a: torch.Tensor, b: torch.Tensor, device: torch.device | str = "cpu") -> Iterator[Score]:
    """The score of each pair of frames of videos that `check` accepts, computed on `device` with the memory of a few
    frames. Raises TurboError for a frame that holds NaN or infinite values.

    In float64: the variances of flat areas are differences of nearly equal numbers, which in float32 change the fourth
    digit."""
    # Imported here because it takes half a second.
    from kornia.metrics import ssim

    for index, pair in enumerate(zip(a, b, strict=True)):
        one, other = (rearrange(to_rgb(frame.to(device), 0.0).double(), "h w c -> 1 c h w") for frame in pair)
        mse = (one - other).square().mean().item()
        if not math.isfinite(mse):
            raise TurboError(
                f"Frame {index} of a or b holds values that are no numbers, so there is nothing to compare."
            )
        # `valid`: only pixels with a whole window count, as in scikit-image and in the paper.
        yield Score(mse, ssim(one, other, WINDOW, eps=0.0, padding="valid").mean().item())


def report(found: list[Score], labels: tuple[str, str], width: int, height: int) -> str:
    """The scores summarized in three lines; frames count from 0."""
    mean = psnr(sum(score.mse for score in found) / len(found))
    ssims = [score.ssim for score in found]
    worst = max(range(len(found)), key=lambda i: found[i].mse)
    unlike = min(range(len(found)), key=lambda i: ssims[i])
    if math.isinf(mean):
        first = "PSNR infinite: the frames are equal"
    else:
        first = f"PSNR {mean:.2f} dB over all frames, lowest {found[worst].psnr:.2f} dB at frame {worst}"
    return "\n".join(
        (
            f"{bounded(labels[0], _LABEL)} against {bounded(labels[1], _LABEL)}: {len(found)} "
            f"frame{'s' * (len(found) > 1)} of {width}x{height}",
            first,
            f"SSIM {sum(ssims) / len(ssims):.4f} on average, lowest {ssims[unlike]:.4f} at frame {unlike}",
        )
    )


def beside(a: torch.Tensor, b: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """float32 [frames, top + height, 2 * width, 3]: a on the left, b on the right, below `captions` [top, 2 * width,
    3]."""
    frames, height, width, _ = a.shape
    top = len(captions)
    out = torch.empty((frames, top + height, 2 * width, 3))
    out[:, :top] = captions
    for place, left, right in zip(out[:, top:], a, b, strict=True):
        place[:, :width].copy_(to_rgb(left, 0.0))
        place[:, width:].copy_(to_rgb(right, 0.0))
    return out

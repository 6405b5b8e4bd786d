"""Reads from the frames of a toy-world clip what it shows, to compare with its prompt."""

from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch

from . import world

CONTRAST = 0.25  # of a channel, from which a pixel is no longer background
SMALLEST = 150  # pixels; a disc of the world has 1250
FILLED = {"triangle": 0.5, "disc": np.pi / 4, "square": 1.0}  # area of a shape in its upright bounding box
STILL = 8  # pixels that a shape must move in a clip to have a direction


@dataclass(frozen=True)
class Seen:
    """One shape found in a clip: kind and color of the median frame, direction by a line fitted through its centers."""

    kind: str
    color: str
    direction: str
    speed: str


@dataclass(frozen=True)
class Score:
    """Whether a clip matches its prompt, each field for all of its shapes."""

    color: bool
    kind: bool
    direction: bool
    speed: bool
    background: bool

    @property
    def all(self) -> bool:
        return self.color and self.kind and self.direction


def score(clip: torch.Tensor, wanted: world.Scene, colors: dict | None = None) -> Score:
    """Judges a clip [frames, H, W, 3] in 0..1; `colors` replaces the world's (names to RGB)."""
    clip = clip.float().numpy()
    background = background_of(clip)
    seen = look(clip, background, wanted, colors or world.COLORS)
    right_background = nearest(background, world.BACKGROUNDS) == wanted.background
    if len(seen) != len(wanted.shapes):
        return Score(False, False, False, False, right_background)
    pairs = list(zip(seen, wanted.shapes, strict=True))
    return Score(
        all(s.color == shape.color for s, shape in pairs),
        all(s.kind == shape.kind for s, shape in pairs),
        all(s.direction == wanted.direction for s in seen),
        all(s.speed == wanted.speed for s in seen),
        right_background,
    )


def background_of(clip: np.ndarray) -> np.ndarray:
    """The median color of the picture's edge."""
    edge = np.concatenate([clip[:, :4].reshape(-1, 3), clip[:, -4:].reshape(-1, 3), clip[:, :, :4].reshape(-1, 3)])
    return np.median(edge, 0)


def look(clip: np.ndarray, background: np.ndarray, wanted: world.Scene, colors: dict) -> list[Seen]:
    """The shapes of a clip in the order its prompt names them: by the lane they keep to. Fewer or more than the prompt
    says in most frames: an empty list."""
    count = len(wanted.shapes)
    across = 0 if world.DIRECTIONS[wanted.direction][1] == 0 else 1
    frames = [blobs(frame, background, np.array(list(colors.values()))) for frame in clip]
    good = [(i, sorted(found, key=lambda b: b[0][across])) for i, found in enumerate(frames) if len(found) == count]
    if len(good) < 0.75 * len(frames):
        return []
    times = np.array([i for i, _ in good]) / (len(frames) - 1)
    return [one([found[k] for _, found in good], times, colors) for k in range(count)]


def blobs(frame: np.ndarray, background: np.ndarray, palette: np.ndarray) -> list[tuple]:
    """(center (y, x), part of its bounding box filled, color) of everything that is not background. Shapes that touch
    are told apart by their colors, of a palette [n, 3]."""
    found = []
    for touching in regions(np.abs(frame - background).max(-1) > CONTRAST):
        distances = np.square(frame[touching][:, None] - palette).sum(-1)
        large = np.flatnonzero(np.bincount(distances.argmin(1), minlength=len(palette)) >= SMALLEST)
        if len(large) < 2:
            found.append(touching)
            continue
        nearest_of = np.full(frame.shape[:2], -1)
        nearest_of[touching] = distances[:, large].argmin(1)
        # Not the edges of one shape, which are mixed with the background and may look like the other's color.
        found += [part for k in range(len(large)) for part in regions(nearest_of == k)]
    return [blob(frame, inside) for inside in found]


def regions(mask: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask that are large enough to be a shape, each as a mask."""
    labels, count = scipy.ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == i for i in range(1, count + 1) if sizes[i] >= SMALLEST]


def blob(frame: np.ndarray, inside: np.ndarray) -> tuple:
    y, x = np.nonzero(inside)
    filled = len(y) / (np.ptp(y) + 1) / (np.ptp(x) + 1)
    return (y.mean(), x.mean()), filled, np.median(frame[inside], 0)


def one(found: list[tuple], times: np.ndarray, colors: dict) -> Seen:
    filled = float(np.median([b[1] for b in found]))
    dy, dx = np.polyfit(times, np.array([b[0] for b in found]), 1)[0]
    way, other = (dx, dy) if abs(dx) > abs(dy) else (dy, dx)
    names = ("left", "right") if abs(dx) > abs(dy) else ("up", "down")
    direction = names[int(way > 0)] if abs(way) > max(STILL, 2 * abs(other)) else "none"
    return Seen(
        min(FILLED, key=lambda kind: abs(FILLED[kind] - filled)),
        nearest(np.median([b[2] for b in found], 0), colors),
        direction,
        min(world.SPEEDS, key=lambda speed: abs(world.SPEEDS[speed] - abs(way))),
    )


def nearest(color: np.ndarray, named: dict) -> str:
    return min(named, key=lambda name: float(np.square(np.subtract(color, named[name])).sum()))


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """PSNR in dB of pictures or clips in 0..1."""
    return -10 * torch.log10((a.float() - b.float()).square().mean().clamp(min=1e-10)).item()


def ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """Structural similarity (Wang 2004, an 11-pixel Gaussian window), the mean over the frames [T, H, W, 3]."""
    from kornia.metrics import ssim as similarity

    return similarity(a.float().permute(0, 3, 1, 2), b.float().permute(0, 3, 1, 2), 11).mean().item()

"""Latents of the toy world, encoded once and cut into many clips.

Encoding costs more than a training step. So every combination of words is encoded on a canvas larger than a clip, with
one shape in its middle: a window of it is a clip with the shape elsewhere, two half windows are a clip with two shapes,
and what the VAE makes of a picture's edges, which depends on the background alone, is added. Latents are in the model's
space."""

import itertools
import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import comfy.latent_formats
import torch

from .. import world
from . import whole_vae

PIXELS = 8  # of a latent's side
CANVAS = world.SIZE // PIXELS + 10  # latents a side
CLIP = world.SIZE // PIXELS
FRAMES = (world.FRAMES - 1) // 4 + 1
MIDDLE = (CANVAS - CLIP) // 2
PHASES = 2  # positions between whole latents that are encoded of each combination


@dataclass
class Canvases:
    """clips: words to [16, 9, 24, 24]; images: (kind, color, background) to the same for a first frame and 32 gray
    ones; edges: background to what the edges of a picture add, [16, 9, 16, 16], for clips and for images."""

    clips: dict[tuple, list[torch.Tensor]]
    images: dict[tuple, list[torch.Tensor]]
    edges: dict[str, tuple[torch.Tensor, torch.Tensor]]


def shifts(speed: str, direction: str, lane: int | None = None) -> list[tuple[int, int]]:
    """Where a clip's window may lie, as (y, x) in latents, so that the shape stays in the picture; in `lane` 0 or 1 it
    stays in the upper (left) or the lower (right) half."""
    along = int((world.SIZE / 2 - world.SPEEDS[speed] / 2 - world.RADIUS) / PIXELS)
    across = range(-4, 5) if lane is None else ((3, 4) if lane == 0 else (-4, -3))
    horizontal = world.DIRECTIONS[direction][1] == 0
    pairs = itertools.product(range(-along, along + 1), across)
    return [(MIDDLE + (c if horizontal else a), MIDDLE + (a if horizontal else c)) for a, c in pairs]


def middle(direction: str, lane: int | None) -> tuple[int, int]:
    """The one window with the shape in the middle of the picture, or of its lane."""
    across = 0 if lane is None else (3, -3)[lane]
    horizontal = world.DIRECTIONS[direction][1] == 0
    return (MIDDLE + across, MIDDLE) if horizontal else (MIDDLE, MIDDLE + across)


def at_start(shift: tuple[int, int], speed: str, direction: str) -> tuple[int, int]:
    """The window of an image's canvas that shows the first frame of the clip whose window is `shift`."""
    dx, dy = world.DIRECTIONS[direction]
    half = world.SPEEDS[speed] // 2 // PIXELS
    return shift[0] + half * dy, shift[1] + half * dx


def window(canvas: torch.Tensor, shift: tuple[int, int]) -> torch.Tensor:
    y, x = shift
    return canvas[:, :, y : y + CLIP, x : x + CLIP]


def load(vae: torch.nn.Module, path: Path) -> Canvases:
    """Reads the canvases, or encodes them, which takes some minutes."""
    if path.exists():
        return Canvases(**torch.load(path, weights_only=True))
    made = encode_all(vae)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(vars(made), path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)
    return made


@torch.no_grad()
def encode_all(vae: torch.nn.Module) -> Canvases:
    middle = CANVAS * PIXELS / 2
    random = torch.Generator().manual_seed(1)
    clips, images, edges = {}, {}, {}
    for kind, color, background in itertools.product(world.KINDS, world.COLORS, world.BACKGROUNDS):
        phases = (middle - PIXELS / 2 + PIXELS * torch.rand(PHASES, 2, generator=random)).tolist()
        for direction, speed in itertools.product(world.DIRECTIONS, world.SPEEDS):
            clips[kind, color, direction, speed, background] = phases
        images[kind, color, background] = phases
    for name, color in world.BACKGROUNDS.items():
        large = torch.tensor(color).expand(world.FRAMES, CANVAS * PIXELS, CANVAS * PIXELS, 3)
        small = large[:, : world.SIZE, : world.SIZE]
        edges[name] = tuple(
            encode(vae, change(small)) - window(encode(vae, change(large)), (MIDDLE, MIDDLE))
            for change in (lambda clip: clip, lambda clip: followed_by_gray(clip[:1]))
        )
    with multiprocessing.get_context("fork").Pool(2) as pool:
        clips = dict(pool.imap(partial(encode_clips, vae), clips.items(), 8))
        images = dict(pool.imap(partial(encode_images, vae), images.items()))
    return Canvases(clips, images, edges)


def encode_clips(vae, item) -> tuple:
    (kind, color, direction, speed, background), centers = item
    return item[0], [encode(vae, scene(kind, color, direction, speed, background, center)) for center in centers]


def encode_images(vae, item) -> tuple:
    (kind, color, background), centers = item
    stills = [scene(kind, color, "right", "fast", background, center, frames=1) for center in centers]
    return item[0], [encode(vae, followed_by_gray(still)) for still in stills]


def scene(kind, color, direction, speed, background, center, frames=world.FRAMES, colors=None) -> torch.Tensor:
    """A clip as large as a canvas; of a single frame, the shape stands at `center`."""
    first = 0 if frames > 1 else (world.FRAMES - 1) // 2
    what = world.Scene((world.Shape(kind, color, center),), direction, speed, background)
    return world.render(what, CANVAS * PIXELS, frames, first=first, colors=colors)


def followed_by_gray(still: torch.Tensor) -> torch.Tensor:
    """What WanImageToVideo encodes: the picture, then mid-gray."""
    return torch.cat((still, torch.full((world.FRAMES - 1, *still.shape[1:]), 0.5)))


@torch.no_grad()
def encode(vae: torch.nn.Module, clip: torch.Tensor) -> torch.Tensor:
    """[33, H, W, 3] in 0..1 -> [16, 9, H/8, W/8] in the model's space, bfloat16."""
    video = (clip * 2 - 1).permute(3, 0, 1, 2)[None].contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        latent = whole_vae.encode(vae, video).float()
    return comfy.latent_formats.Wan21().process_in(latent)[0].to(torch.bfloat16)

"""The toy world: one or two flat shapes that move in a straight line over a flat background.

Every clip is a pure function of its seed. It is small on purpose: models that a CPU trains in an hour can learn it
whole, and simple vision can tell from the frames whether a video is what its prompt says."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

SIZE, FRAMES, FPS = 128, 33, 16
COLORS = {
    "red": (0.86, 0.16, 0.16),
    "orange": (0.96, 0.55, 0.10),
    "yellow": (0.95, 0.87, 0.15),
    "green": (0.15, 0.66, 0.25),
    "blue": (0.15, 0.35, 0.88),
    "purple": (0.60, 0.20, 0.75),
}
TURQUOISE = (0.15, 0.80, 0.80)  # no word of the world: what the example LoRA teaches
KINDS = ("disc", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS = {"slowly": 32, "fast": 64}  # pixels in a whole clip
BACKGROUNDS = {"dark": (0.10, 0.10, 0.13), "light": (0.90, 0.90, 0.87)}
TWO_SHAPES = 0.25  # the part of the clips that hold two
RADIUS = 20.0  # of a disc; the other kinds have about its area
ACROSS = 36.0  # how far a path may lie from the center
LANE, LANE_SPREAD = 30.0, 5.0  # the same for two shapes, which keep to a half each
DRIFT = 0.25  # how far `elsewhere` moves the end of a path along and across it, as a part of its length


@dataclass(frozen=True)
class Shape:
    kind: str
    color: str
    center: tuple[float, float]  # x and y in pixels halfway through the clip
    drift: tuple[float, float] = (0.0, 0.0)  # pixels that it moves in a whole clip beside its scene's motion


@dataclass(frozen=True)
class Scene:
    shapes: tuple[Shape, ...]  # of two, the upper or the left one first
    direction: str
    speed: str
    background: str

    @property
    def prompt(self) -> str:
        things = " and ".join(f"a {shape.color} {shape.kind}" for shape in self.shapes)
        return f"{things} moving {self.direction} {self.speed} over a {self.background} background"


def scene(seed: int) -> Scene:
    """The scene of a seed."""
    return place(draw_words(seed), seed)


def draw_words(seed: int) -> Scene:
    """The words of a seed's scene, with its shapes at their default centers."""
    random = np.random.RandomState(seed)
    count = 2 if random.rand() < TWO_SHAPES else 1
    colors = random.choice(list(COLORS), count, replace=False)
    kinds = random.choice(KINDS, count)
    direction, speed = random.choice(list(DIRECTIONS)), random.choice(list(SPEEDS))
    background = random.choice(list(BACKGROUNDS))
    shapes = tuple(Shape(str(k), str(c), (SIZE / 2, SIZE / 2)) for k, c in zip(kinds, colors, strict=True))
    return Scene(shapes, str(direction), str(speed), str(background))


def parse(prompt: str) -> Scene:
    """The scene of a prompt as `Scene.prompt` writes it, its shapes in the middle."""
    things, rest = prompt.split(" moving ")
    direction, speed, *_, background, _ = rest.split()
    shapes = [thing.split()[1:] for thing in things.split(" and ")]
    return Scene(
        tuple(Shape(kind, color, (SIZE / 2, SIZE / 2)) for color, kind in shapes), direction, speed, background
    )


def place(words: Scene, seed: int) -> Scene:
    """The same scene with its shapes where a seed puts them."""
    random = np.random.RandomState(seed ^ 0x5EED)
    dx, dy = DIRECTIONS[words.direction]
    shapes = []
    reach = SIZE / 2 - SPEEDS[words.speed] / 2 - RADIUS  # how far along its path a middle may lie, all in the picture
    for i, shape in enumerate(words.shapes):
        along, across = random.uniform(-1, 1, 2) * (reach, ACROSS if len(words.shapes) == 1 else LANE_SPREAD)
        if len(words.shapes) == 2:
            across += LANE if i else -LANE
        center = (SIZE / 2 + along * dx + across * abs(dy), SIZE / 2 + along * dy + across * abs(dx))
        shapes.append(Shape(shape.kind, shape.color, center))
    return Scene(tuple(shapes), words.direction, words.speed, words.background)


def elsewhere(scene: Scene, seed: int) -> Scene:
    """The same scene, its words and its first frame, with its shapes ending elsewhere, all in the picture."""
    random = np.random.RandomState(seed ^ 0xE15E)
    length = SPEEDS[scene.speed]
    travel = np.multiply(DIRECTIONS[scene.direction], length)
    while True:
        drift = random.uniform(-1, 1, 2) * DRIFT * length
        shapes = tuple(
            replace(shape, center=tuple((shape.center + drift / 2).tolist()), drift=tuple(drift.tolist()))
            for shape in scene.shapes
        )
        ends = np.array([shape.center for shape in shapes]) + (travel + drift) / 2
        if (np.abs(ends - SIZE / 2) <= SIZE / 2 - RADIUS).all():
            return replace(scene, shapes=shapes)


def render(
    what: Scene,
    size: int = SIZE,
    frames: int = FRAMES,
    origin: tuple[float, float] = (0, 0),
    first: int = 0,
    colors=None,
) -> torch.Tensor:
    """The clip [frames, size, size, 3], float32 in 0..1, edges smoothed over a pixel.

    `origin` (x, y) and `first` cut a window out of the full clip; `colors` replaces named colors (names to RGB)."""
    palette = COLORS | BACKGROUNDS | (colors or {})
    time = (first + torch.arange(frames, dtype=torch.float32)) / (FRAMES - 1) - 0.5
    traveled = time * SPEEDS[what.speed]
    dx, dy = DIRECTIONS[what.direction]
    pixel = torch.arange(size, dtype=torch.float32) + 0.5
    clip = torch.tensor(palette[what.background]).expand(frames, size, size, 3)
    for shape in what.shapes:
        moved_x, moved_y = (traveled * d + time * drift for d, drift in zip((dx, dy), shape.drift, strict=True))
        x = (pixel[None] + origin[0] - shape.center[0] - moved_x[:, None])[:, None, :]
        y = (pixel[None] + origin[1] - shape.center[1] - moved_y[:, None])[:, :, None]
        inside = (0.5 - distance(shape.kind, x, y, RADIUS)).clamp(0, 1)[..., None]
        clip = clip + inside * (torch.tensor(palette[shape.color]) - clip)
    return clip


def distance(kind: str, x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    """How far points lie outside a shape centered on 0, in pixels; negative inside."""
    if kind == "disc":
        return (x * x + y * y).sqrt() - radius
    if kind == "square":
        return torch.maximum(x.abs(), y.abs()) - radius * math.sqrt(math.pi) / 2
    inner = radius * 0.74  # of an upright triangle's inscribed circle
    return torch.maximum(y - inner * 1.15, x.abs() * math.sqrt(0.75) - y / 2 - inner * 0.95)

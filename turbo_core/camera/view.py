"""A picture of a camera path from above, with how fast it moves and turns."""

from collections.abc import Iterable
from math import dist

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .path import CameraPath
from .pose import relative_poses

Point = tuple[float, float]
Color = tuple[int, int, int]
SIZE = (960, 640)
FPS = 16
_SCALE = 2  # drawn larger and reduced, which smooths the edges
_PLOT = (28, 54, 932, 456)
_LEAST = 1e-100  # of a path's extent; a smaller one is not a move, and its square underflows
_CHARTS = (120, 932)  # left and right end of the charts' time axis
_BACKGROUND, _PANEL, _GRID = (16, 20, 28), (22, 27, 37), (38, 45, 58)
_TEXT, _FAINT = (226, 230, 238), (128, 138, 156)
# The colors of time, from the first frame to the last.
_COLORS = np.array([(64, 196, 255), (124, 108, 255), (255, 92, 168), (255, 178, 64)], dtype=float)


def top_view(path: CameraPath) -> Image.Image:
    """An RGB picture of SIZE: the path seen from above with the first camera looking up the page, a wedge for the field
    of view at some latent frames, and charts of the speed and turn that the network is given and of the keys."""
    canvas = _Canvas()
    first = path.poses[0]
    relative = np.linalg.inv(first) @ path.poses
    canvas.text((28, 16), f"{path.frames} frames", 20, _TEXT)
    seconds = f"{(path.frames - 1) / FPS:g} s at {FPS} fps   {path.latent_frames} latent frames"
    canvas.text((28 + canvas.width(f"{path.frames} frames", 20) + 14, 20), seconds, 15, _FAINT)
    canvas.text((932, 20), "from above", 15, _FAINT, anchor="ra")
    _draw_plot(canvas, relative, path)
    _draw_charts(canvas, path)
    return canvas.finished()


def _draw_plot(canvas: "_Canvas", poses: np.ndarray, path: CameraPath) -> None:
    left, top, right, bottom = _PLOT
    canvas.box(_PLOT, _PANEL)
    ground = poses[:, (0, 2), 3]
    look = poses[:, :3, 2][:, (0, 2)]
    low, high = ground.min(axis=0), ground.max(axis=0)
    extent = float((high - low).max())
    extent = extent if extent > _LEAST else 0.0
    width, height = right - left, bottom - top
    wedge = 46.0  # pixels
    room = np.array([width, height]) - 2 * (wedge + 18)
    pixels_per_unit = float((room / np.maximum(high - low, extent * 1e-9)).min()) if extent > 0 else 1.0
    middle = (low + high) / 2

    def place(point: np.ndarray) -> tuple[float, float]:
        x, z = (point - middle) * pixels_per_unit
        return left + width / 2 + x, top + height / 2 - z

    step = _grid_step(extent) * pixels_per_unit if extent > 0 else 64.0
    origin = place(np.zeros(2))
    for axis, (begin, end) in enumerate(((left, right), (top, bottom))):
        offset = (origin[axis] - begin) % step
        for position in np.arange(begin + offset, end, step):
            line = ((position, top), (position, bottom)) if axis == 0 else ((left, position), (right, position))
            canvas.line(line, _GRID, 1)

    shown = range(0, path.frames, max(1, -(-path.latent_frames // 11)) * 4)
    for i in reversed(shown):
        focal = path.intrinsics_at(832, 480)[i // 4, 0]
        _wedge(canvas, place(ground[i]), look[i], np.arctan2(416, focal), wedge, _color(i / max(path.frames - 1, 1)))
    for i in range(path.frames - 1):
        canvas.line((place(ground[i]), place(ground[i + 1])), _color(i / (path.frames - 1)), 4)
    for i in shown:
        canvas.dot(place(ground[i]), 4, _color(i / max(path.frames - 1, 1)))
    ends = [place(ground[0]), place(ground[path.frames - 1])]
    canvas.dot(ends[0], 7, _TEXT, _color(0.0))
    if dist(*ends) < 24:
        moves = extent > 0 or np.ptp(poses[:, :3, :3], axis=0).max() > 1e-6
        canvas.text(
            (ends[0][0], ends[0][1] + 12), "start and end" if moves else "does not move", 15, _TEXT, anchor="ma"
        )
    else:
        canvas.dot(ends[1], 7, _TEXT, _color(1.0))
        for name, (x, y) in zip(("start", "end"), ends, strict=True):
            canvas.text((x + 13, y - 9), name, 15, _TEXT)


def _wedge(canvas: "_Canvas", tip: Point, look: np.ndarray, half_angle: float, length: float, color: Color) -> None:
    """The field of view, seen from above: shorter the more the camera looks up or down."""
    heading = np.arctan2(look[0], look[1])
    reach = length * max(float(np.hypot(*look)), 0.15)
    corners = [
        (tip[0] + np.sin(a) * reach / np.cos(half_angle), tip[1] - np.cos(a) * reach / np.cos(half_angle))
        for a in (heading - half_angle, heading + half_angle)
    ]
    canvas.fill([tip, *corners], color, 46)
    canvas.line((tip, corners[0]), color, 1.5)
    canvas.line((tip, corners[1]), color, 1.5)


def _draw_charts(canvas: "_Canvas", path: CameraPath) -> None:
    relative = relative_poses(path)
    speed = np.linalg.norm(relative[:, :3, 3], axis=1)
    cosine = (np.trace(relative[:, :3, :3], axis1=1, axis2=2) - 1) / 2
    turn = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    limit = max(1.0, speed.max())
    bars = [
        ("speed", speed / limit, f"{speed.max():.2g}"),
        ("turn", turn / max(turn.max(), 1e-9), f"{turn.max():.0f}\u00b0"),
    ]
    top = 476
    for name, values, most in bars:
        canvas.text((28, top + 12), name, 15, _TEXT)
        canvas.text((_CHARTS[0] - 8, top + 13), most, 13, _FAINT, anchor="ra")
        _bars(canvas, top, 42, values)
        top += 52
    if path.keys is None:
        return
    for name, held in zip("wasd", path.keys[::4].T, strict=True):
        if held.any():
            canvas.text((28, top - 1), name.upper(), 13, _TEXT)
            _bars(canvas, top, 11, held.astype(float))
            top += 14


def _bars(canvas: "_Canvas", top: float, height: float, values: np.ndarray) -> None:
    """One bar for each latent frame, its value 0 to 1."""
    begin, end = _CHARTS
    canvas.box((begin, top, end, top + height), _PANEL)
    each = (end - begin) / len(values)
    for i, value in enumerate(values):
        if value > 0.005:
            x = begin + i * each
            gap = min(2.0, each / 6)
            box = (x + gap / 2, top + height * (1 - value), x + each - gap / 2, top + height)
            canvas.box(box, _color(i / max(len(values) - 1, 1)))


def _grid_step(extent: float) -> float:
    """1, 2 or 5 times a power of ten, about a sixth of `extent`."""
    magnitude = 10.0 ** np.floor(np.log10(extent / 6))
    return float(magnitude * next(m for m in (1, 2, 5, 10) if m * magnitude >= extent / 6 * 0.999))


def _color(share: float) -> Color:
    """The color of a moment, 0 to 1."""
    position = float(np.clip(share, 0, 1)) * (len(_COLORS) - 1)
    i = min(int(position), len(_COLORS) - 2)
    red, green, blue = (_COLORS[i] + (position - i) * (_COLORS[i + 1] - _COLORS[i])).astype(int).tolist()
    return red, green, blue


class _Canvas:
    """PIL in coordinates of SIZE, drawn at _SCALE."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), _BACKGROUND)
        self.draw = ImageDraw.Draw(self.image, "RGBA")

    def _scaled(self, points: Iterable[Point]) -> list[tuple[float, float]]:
        return [(float(x) * _SCALE, float(y) * _SCALE) for x, y in points]

    def line(self, points: Iterable[Point], color: Color, width: float) -> None:
        self.draw.line(self._scaled(points), color, round(width * _SCALE), joint="curve")

    def fill(self, points: Iterable[Point], color: Color, opacity: int) -> None:
        self.draw.polygon(self._scaled(points), (*color, opacity))

    def box(self, box: tuple[float, float, float, float], color: Color) -> None:
        self.draw.rounded_rectangle([float(v) * _SCALE for v in box], 3, color)

    def dot(self, center: Point, radius: float, color: Color, ring: Color | None = None) -> None:
        (x, y), r = self._scaled([center])[0], radius * _SCALE
        self.draw.ellipse((x - r, y - r, x + r, y + r), color, ring, 3 * _SCALE if ring else 0)

    def text(self, at: Point, text: str, size: int, color: Color, anchor: str = "la") -> None:
        self.draw.text(self._scaled([at])[0], text, color, ImageFont.load_default(size * _SCALE), anchor)

    def width(self, text: str, size: int) -> float:
        return self.draw.textlength(text, ImageFont.load_default(size * _SCALE)) / _SCALE

    def finished(self) -> Image.Image:
        return self.image.resize(SIZE, Image.Resampling.LANCZOS)

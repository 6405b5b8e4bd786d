"""Charts and captions, drawn with Pillow."""

import bisect
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 960, 640
PAPER, INK, GRID, LINE, MARKER = "#181a1f", "#e6e6e6", "#3a3d45", "#5aa9ff", "#ffb454"
TICKS = 5


def _tensor(picture: Image.Image) -> torch.Tensor:
    """float32 [height, width, 3] of 0 to 1."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)


def captions(labels: tuple[str, str], width: int, height: int) -> torch.Tensor:
    """A bar above two frames of that size with a label in the middle of each half: float32 [top, 2 * width, 3].

    `top` + `height` is even, which H.264 requires."""
    top = max(20, height // 20)
    top += (top + height) % 2
    picture = Image.new("RGB", (2 * width, top), PAPER)
    draw = ImageDraw.Draw(picture)
    font = _font(top * 0.6)
    for half, label in enumerate(labels):
        text = _shortened(" ".join(label.split()), font, width - 8)
        draw.text((width * (half + 0.5), top / 2), text, INK, font, anchor="mm")
    return _tensor(picture)


def _font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font. Raises OSError in a Pillow that was built without FreeType."""
    font = ImageFont.load_default(size)
    if isinstance(font, ImageFont.FreeTypeFont):
        return font
    raise OSError("This Pillow was built without FreeType: install Pillow's own wheel.")


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The longest beginning of a text that is at most `width` pixels wide, with "..." where it was cut."""
    text = text[: int(width) + 1]  # no visible character is narrower than a pixel
    if font.getlength(text) <= width:
        return text
    fitting = bisect.bisect_right(range(1, len(text)), width, key=lambda count: font.getlength(text[:count] + "..."))
    return text[:fitting] + "..." if fitting else ""


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, one step apart, that begin at or below `low` and end at or above `high`."""
    if low == high:
        low -= max(abs(low), 1.0) / 10  # below, so that the axis of an SSIM of 1 ends at 1
    span = high - low
    power = 10 ** math.floor(math.log10(span / TICKS))
    step = next(m * power for m in (1, 2, 5, 10) if m * power * TICKS >= span * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [i * step for i in range(first, last + 1)]


def curves(panels: Sequence[tuple[str, str, Sequence[float]]]) -> torch.Tensor:
    """One panel under another of (title, format of its lowest value, value of each frame): float32 [HEIGHT, WIDTH, 3].

    The lowest value is marked. An infinite value is drawn at the upper edge, in the color of the marker."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    high = HEIGHT / len(panels)
    for index, (title, form, values) in enumerate(panels):
        _panel(draw, (90, index * high + 42, WIDTH - 30, (index + 1) * high - 46), title, form, values)
    return _tensor(picture)


def _panel(draw: ImageDraw.ImageDraw, box: tuple, title: str, form: str, values: Sequence[float]) -> None:
    left, top, right, bottom = box
    font, small = ImageFont.load_default(20), ImageFont.load_default(14)
    draw.text((left, top - 10), title, INK, font, anchor="lb")
    finite = [value for value in values if math.isfinite(value)]
    scale = ticks(min(finite), max(finite)) if finite else [0.0, 1.0]
    decimals = max(0, -math.floor(math.log10(scale[1] - scale[0]) + 1e-9))

    def y(value: float) -> float:
        return bottom - (min(value, scale[-1]) - scale[0]) / (scale[-1] - scale[0]) * (bottom - top)

    def x(frame: float) -> float:
        return left + (frame / (len(values) - 1) if len(values) > 1 else 0.5) * (right - left)

    for value in scale if finite else ():
        draw.line((left, y(value), right, y(value)), GRID)
        draw.text((left - 8, y(value)), f"{value:.{decimals}f}", INK, small, anchor="rm")
    for frame in ticks(0, max(len(values) - 1, 1)):
        if frame == int(frame) and frame < len(values):
            draw.line((x(frame), top, x(frame), bottom), GRID)
            draw.text((x(frame), bottom + 6), f"{frame:.0f}", INK, small, anchor="ma")
    draw.text((right, bottom + 22), "frame", INK, small, anchor="ra")
    draw.line([(x(i), y(value)) for i, value in enumerate(values)], LINE, 2)
    lowest = min(range(len(values)), key=values.__getitem__)
    for i, value in enumerate(values):
        if math.isinf(value) or i == lowest or len(values) == 1:
            color = MARKER if math.isinf(value) or i == lowest else LINE
            draw.ellipse((x(i) - 4, y(value) - 4, x(i) + 4, y(value) + 4), color)
    if finite:
        note = f"lowest {form.format(values[lowest])} at frame {lowest}"
    else:
        note = "infinite: all frames are equal"
    draw.text((right, top - 12), note, MARKER, small, anchor="rb")

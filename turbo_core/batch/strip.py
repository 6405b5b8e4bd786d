"""Evenly spaced frames of a video or picture, for contact sheets."""

import io
from collections.abc import Iterator
from pathlib import Path

import av
from PIL import Image

COUNT = 6
_MOST_FRAMES = 20_000
_MOST_PIXELS = 1 << 26  # of a frame


def spaced_frames(source: bytes | Path, count: int = COUNT) -> list[Image.Image]:
    """Up to `count` frames from the first to the last. Raises av.FFmpegError or OSError for a file that is not a video,
    ValueError for one with frames too large or too many."""
    total = sum(1 for _ in _frames(source))
    chosen = {round(i * (total - 1) / max(min(count, total) - 1, 1)) for i in range(min(count, total))}
    return [frame.to_image() for i, frame in enumerate(_frames(source)) if i in chosen]


def _frames(source: bytes | Path) -> Iterator[av.VideoFrame]:
    with av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > _MOST_PIXELS:
            raise ValueError(f"A frame has {stream.width} x {stream.height} pixels.")
        for i, frame in enumerate(container.decode(stream)):
            if i >= _MOST_FRAMES:
                raise ValueError(f"It has more than {_MOST_FRAMES} frames.")
            yield frame


def thumbnail(frame: Image.Image, height: int) -> Image.Image:
    """The frame at that height, in its own aspect ratio."""
    return frame.resize((max(round(frame.width * height / frame.height), 1), height))


def paste_row(frames: list[Image.Image], height: int) -> Image.Image:
    """The frames side by side at that height."""
    pictures = [thumbnail(frame, height) for frame in frames]
    row = Image.new("RGB", (sum(picture.width for picture in pictures), height))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return row


def jpeg_strip(video: bytes, height: int = 120) -> bytes:
    """A JPEG of the video's frames in a row."""
    buffer = io.BytesIO()
    paste_row(spaced_frames(video), height).save(buffer, "JPEG", quality=80)
    return buffer.getvalue()

"""Frames as a video: 8-bit frames kept in a file of their own, and an mp4 written frame by frame with ComfyUI's settings."""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import torch

from .errors import TurboError

FPS = (1.0, 120.0)


def frame_rate(fps: float) -> Fraction:
    """Frames a second as the exact number it is. Raises TurboError outside of FPS."""
    if not FPS[0] <= fps <= FPS[1]:
        raise TurboError(f"fps is {fps}: choose {FPS[0]:.0f} to {FPS[1]:.0f} frames a second (Wan 2.1 and A14B: 16).")
    return Fraction(fps)


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Around writing to `folder`: what goes wrong with the disk there becomes a TurboError."""
    try:
        yield
    except OSError as error:
        raise TurboError(
            f"The video could not be written to {folder} ({error.strerror or error}): free some space there, or start ComfyUI with "
            "another --temp-directory."
        ) from error


def frame_file(folder: Path, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """A uint8 tensor that lives in a file of `folder` instead of in memory; the file goes when the tensor does. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    # Nameless (Linux) or deleted when its last handle closes (Windows): even a killed process leaves nothing behind.
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            # A mapped file with holes kills the process when the disk turns out to be full.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=shape))


class Mp4Writer:
    """An H.264 mp4 written frame by frame, the same as ComfyUI writes from images (comfy_api's VideoFromComponents.save_to):
    `crf` None is its default quality, `bit_depth` 8 or 10, `metadata` is stored as JSON.

    A context manager: leaving it by an exception removes the file."""

    def __init__(
        self,
        path: str | BytesIO,
        width: int,
        height: int,
        frame_rate: Fraction,
        metadata: Mapping | None = None,
        bit_depth: int = 8,
        crf: float | None = None,
    ):
        self._path = path
        to_file = isinstance(path, (str, os.PathLike))
        # ffmpeg's faststart opens the file again by its name.
        options = {"movflags": "use_metadata_tags+faststart" if to_file else "use_metadata_tags"}
        self._container = av.open(path, mode="w", format="mp4", options=options)
        for key, value in (metadata or {}).items():
            self._container.metadata[key] = json.dumps(value)
        self._stream = self._container.add_stream("h264", rate=Fraction(round(frame_rate * 1000), 1000))
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p10le" if bit_depth >= 10 else "yuv420p"
        self._deep = bit_depth >= 10
        if crf is not None:
            self._stream.options = {"crf": str(crf)}

    def write(self, frames: torch.Tensor) -> None:
        """Adds uint8 frames [n, height, width, 3]."""
        for frame in frames.numpy():
            if self._deep:
                picture = av.VideoFrame.from_ndarray(frame.astype(np.uint16) * 257, format="rgb48le")
            else:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            self._container.mux(self._stream.encode(picture.reformat(format=self._stream.pix_fmt)))

    def __enter__(self) -> "Mp4Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        whole = False
        try:
            try:
                if kind is None:
                    self._container.mux(self._stream.encode(None))
            finally:
                self._container.close()
            whole = kind is None
        finally:
            if not whole and isinstance(self._path, (str, os.PathLike)):
                Path(self._path).unlink(missing_ok=True)

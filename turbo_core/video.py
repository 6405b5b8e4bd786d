"""The frames of a video: 8-bit frames kept in a file of their own, and float32 images made of them one at a time."""

import math
import os
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import TurboError

FPS = (1.0, 120.0)


def stored_images(folder: Path, images: torch.Tensor) -> "LazyImages":
    """An IMAGE [n, height, width, 3 or 4] as 8-bit frames in a file of `folder`, without alpha. Raises TurboError for a
    full disk."""
    with room_in(folder):
        frames = frame_file(folder, (*images.shape[:3], 3))
    for i, image in enumerate(images):
        frames[i] = (image[..., :3] * 255).clamp(0, 255).byte()
    return LazyImages(frames)


def frame_rate(fps: float) -> Fraction:
    """Frames a second as an exact fraction. Raises TurboError outside of FPS."""
    if not FPS[0] <= fps <= FPS[1]:
        raise TurboError(f"fps is {fps}: choose {FPS[0]:.0f} to {FPS[1]:.0f} frames a second (Wan 2.1 and A14B: 16).")
    return Fraction(fps)


@contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """For a block that writes to `folder`: turns an OSError into a TurboError."""
    try:
        yield
    except OSError as error:
        raise TurboError(
            f"The video could not be written to {folder} ({error.strerror or error}): free some space there, or "
            "start ComfyUI with "
            "another --temp-directory."
        ) from error


def frame_file(folder: Path, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """A uint8 tensor that lives in a file of `folder` instead of in memory; the file goes when the tensor does. Raises
    OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    # Nameless (Linux) or deleted when its last handle closes (Windows): even a killed process leaves nothing behind.
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):
            # A mapped file with holes kills the process when the disk turns out to be full.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        return torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=shape))


class LazyImages:
    """uint8 frames [n, height, width, 3] in place of an IMAGE: float32, 0 to 1, made of the frames that are asked for.

    ComfyUI's encoder iterates over an IMAGE and reads its shape, so it holds one float32 frame at a time. Its `* 255`
    gives back each byte exactly, and its `* 65535` gives 257 times the byte."""

    def __init__(self, frames: torch.Tensor):
        self._frames = frames

    @property
    def shape(self) -> torch.Size:
        return self._frames.shape

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._frames[index].float().div_(255)

    def part(self, start: int, stop: int) -> "LazyImages":
        """The frames from `start` to before `stop`, in the same memory."""
        return LazyImages(self._frames[start:stop])

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[i] for i in range(len(self)))

    def __getattr__(self, name: str) -> Any:
        # Whatever else a later encoder asks of an IMAGE is answered by the whole tensor, which costs its memory.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self[:], name)


class JoinedImages(LazyImages):
    """LazyImages of several parts of one size, one after the other."""

    def __init__(self, parts: Sequence[LazyImages]):
        # Joined ones are taken apart, so that reading a frame takes the same time in a video of any number of segments.
        self._parts: list[LazyImages] = [
            one for part in parts for one in (part._parts if isinstance(part, JoinedImages) else [part])
        ]
        self._starts = [0, *accumulate(map(len, self._parts))]

    @property
    def shape(self) -> torch.Size:
        return torch.Size([self._starts[-1], *self._parts[0].shape[1:]])

    def __len__(self) -> int:
        return self._starts[-1]

    def part(self, start: int, stop: int) -> "LazyImages":
        cut = []
        for part, first in zip(self._parts, self._starts, strict=False):
            begin, end = max(start - first, 0), min(stop - first, len(part))
            if begin < end:
                cut.append(part.part(begin, end))
        return JoinedImages(cut)

    def __getitem__(self, index: Any) -> torch.Tensor:
        if isinstance(index, int):
            number = range(len(self))[index]
            which = bisect_right(self._starts, number) - 1
            return self._parts[which][number - self._starts[which]]
        return torch.cat([part[:] for part in self._parts])[index]


class ArrivingImages(LazyImages):
    """LazyImages of frames that another thread is still making: reading a frame waits until it is there."""

    def __init__(self, frames: torch.Tensor):
        super().__init__(frames)
        self._changed = threading.Condition()
        self._count, self._abandoned = 0, False

    def arrived(self, stop: int) -> None:
        """Tells readers that the frames before `stop` are complete."""
        with self._changed:
            self._count = max(self._count, stop)
            self._changed.notify_all()

    def abandon(self) -> None:
        """Tells readers that no more frames will come: reading one that is not complete raises EOFError."""
        with self._changed:
            self._abandoned = True
            self._changed.notify_all()

    def __getitem__(self, index: Any) -> torch.Tensor:
        needed = index + 1 if isinstance(index, int) and index >= 0 else len(self)
        with self._changed:
            self._changed.wait_for(lambda: self._abandoned or self._count >= needed)
            if self._count < needed:
                raise EOFError("the decoder stopped before this frame")
        return super().__getitem__(index)


# Writes images to a new file, reading each once and in order.
Encode = Callable[[LazyImages, Path], None]

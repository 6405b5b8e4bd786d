"""Decodes a latent into an mp4: each frame is encoded while the following ones are decoded."""

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import comfy.sd
import torch

from ..errors import TurboError
from ..video import ArrivingImages, Encode, frame_file, room_in
from .decode import decode, decoded_shape, stock_decode, to_8_bit
from .vae_chunks import can_stream


def decode_video(vae: comfy.sd.VAE, latent: torch.Tensor, folder: Path, encode: Encode) -> tuple[Path, torch.Tensor]:
    """The path of a new mp4 in `folder` that `encode` writes, and its frames before encoding: uint8 [frames, height,
    width, 3], mapped from a file that is deleted with the tensor. Raises TurboError for a full disk or a VAE that does
    not decode to RGB."""
    images = None if can_stream(vae) else stock_decode(vae, latent)
    shape = decoded_shape(vae, latent) if images is None else tuple(images.shape)
    if len(shape) != 4 or shape[-1] != 3:
        raise TurboError(f"This VAE decodes to {list(shape)}, and a video needs [frames, height, width, 3].")
    with room_in(folder):
        frames = frame_file(folder, shape)
        path = folder / f"turbodiffusion-{uuid.uuid4().hex}.mp4"
        with encoding(frames, path, encode) as arrived:
            if images is None:
                decode(vae, latent, frames, arrived)
            else:
                for i, image in enumerate(images):
                    frames[i] = to_8_bit(image)
                arrived(len(frames))
    return path, frames


@contextmanager
def encoding(frames: torch.Tensor, path: Path, encode: Encode) -> Iterator[Callable[[int], None]]:
    """Runs `encode` in another thread, which writes `frames` to `path` as they become complete. Yields a function that
    takes the number of complete frames and raises what the encoder has raised. An exception in the block removes the
    file."""
    images = ArrivingImages(frames)
    with ThreadPoolExecutor(1, "video encoder") as thread:
        encoder = thread.submit(encode, images, path)

        def arrived(stop: int) -> None:
            if encoder.done():
                encoder.result()
            images.arrived(stop)

        try:
            yield arrived
            encoder.result()
        except BaseException:
            images.abandon()
            wait([encoder])  # it has the file open
            path.unlink(missing_ok=True)
            raise

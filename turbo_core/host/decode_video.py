"""A latent decoded straight into an mp4: each chunk goes to the encoder while the next one is decoded."""

import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import comfy.sd
import torch

from ..errors import TurboError
from ..video import Mp4Writer, frame_file, room_in
from .decode import can_stream, decode, decoded_shape, stock_decode, to_8_bit


def decode_video(
    vae: comfy.sd.VAE, latent: torch.Tensor, frame_rate: Fraction, folder: Path
) -> tuple[Path, torch.Tensor]:
    """A new mp4 in `folder`, and its frames as they were before encoding: uint8 [frames, height, width, 3] in a file that goes
    with the tensor. Raises TurboError for a full disk or a VAE that makes no RGB pictures."""
    images = None if can_stream(vae) else stock_decode(vae, latent)
    shape = decoded_shape(vae, latent) if images is None else tuple(images.shape)
    if len(shape) != 4 or shape[-1] != 3:
        raise TurboError(f"This VAE decodes to {list(shape)}, and a video needs [frames, height, width, 3].")
    with room_in(folder):
        frames = frame_file(folder, shape)
        path = folder / f"turbodiffusion-{uuid.uuid4().hex}.mp4"
        with (
            Mp4Writer(str(path), shape[2], shape[1], frame_rate) as writer,
            ThreadPoolExecutor(1, "mp4 encoder") as thread,
        ):
            following = _Following(frames, writer, thread)
            if images is None:
                decode(vae, latent, frames, following)
            else:
                for i, image in enumerate(images):
                    frames[i] = to_8_bit(image)
                following(len(frames))
            following.finish()
    return path, frames


class _Following:
    """Encodes frames in another thread, one chunk behind their decoding."""

    def __init__(self, frames: torch.Tensor, writer: Mp4Writer, thread: ThreadPoolExecutor):
        self._frames, self._writer, self._thread = frames, writer, thread
        self._next, self._encoding = 0, Future()
        self._encoding.set_result(None)

    def __call__(self, stop: int) -> None:
        """The frames before `stop` are there. Those that were there before are not encoded again: a decode that ran out of memory
        starts anew."""
        if stop <= self._next:
            return
        self.finish()
        self._encoding = self._thread.submit(self._writer.write, self._frames[self._next : stop])
        self._next = stop

    def finish(self) -> None:
        """Waits for the encoder; raises what went wrong there."""
        self._encoding.result()

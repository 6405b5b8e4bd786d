"""Decodes with a Wan VAE or a TAEHV chunk by chunk, each chunk written to the result when it is decoded: what ComfyUI
decodes, in the memory of one chunk and the result."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sd
import comfy.utils
import torch

from ..errors import TurboError
from ..strips import blend, counts, shared, strips
from .kernels_ahead import wait_for_kernels
from .vae_chunks import WAN_CHANNELS, can_stream, chunk_decoder

logger = logging.getLogger("turbodiffusion")


def check_decodes_wan(vae: comfy.sd.VAE) -> None:
    """Raises TurboError unless the VAE decodes latents of Wan models: videos of 16 channels, or 48 (Wan 2.2 5B)."""
    vae.throw_exception_if_invalid()
    if vae.latent_dim != 3 or vae.latent_channels not in WAN_CHANNELS:
        kind = "videos" if vae.latent_dim == 3 else "images"
        raise TurboError(
            f"This VAE decodes {kind} of {vae.latent_channels} channels and the model makes videos of 16 (Wan 2.2 5B: "
            "48): load wan_2.1_vae.safetensors."
        )


def latent_of(vae: comfy.sd.VAE, samples: dict[str, Any]) -> torch.Tensor:
    """The video latent in a LATENT, [B, C, T, h, w] for a VAE that can be streamed. Raises TurboError for one that the
    VAE cannot decode."""
    vae.throw_exception_if_invalid()
    latent = samples["samples"]
    if latent.is_nested:
        latent = latent.unbind()[0]
    if can_stream(vae) and (latent.ndim != 5 or latent.shape[1] != vae.latent_channels or 0 in latent.shape):
        raise TurboError(
            f"The latent is {list(latent.shape)} and this VAE decodes [batch, {vae.latent_channels}, frames, height, "
            "width]: connect the latent of a Wan video, or the VAE of the model that made this one."
        )
    return latent


def stock_decode(vae: comfy.sd.VAE, latent: torch.Tensor) -> torch.Tensor:
    """What ComfyUI's VAE Decode node returns: [frames, height, width, channels], batch items one after another."""
    images = vae.decode(latent)
    return images.reshape(-1, *images.shape[-3:]) if images.ndim == 5 else images


def chunk_memory(vae: comfy.sd.VAE, latent: torch.Tensor, count: int = 1) -> int:
    """Peak bytes of decoding one chunk of `latent` [B, C, T, h, w] in `count` strips (estimate)."""
    longer, shorter = sorted(latent.shape[3:], reverse=True)
    strip = strips(longer, count)[0]
    pixels = (strip.stop - strip.start) * shorter * vae.spacial_compression_decode() ** 2
    elements = chunk_decoder(vae).elements(latent.shape[2])
    return elements * pixels * comfy.model_management.dtype_size(vae.vae_dtype)


def decoded_shape(vae: comfy.sd.VAE, latent: torch.Tensor) -> tuple[int, int, int, int]:
    """[frames, height, width, channels] of the decoded latent, batch items one after another."""
    scale = vae.spacial_compression_decode()
    batch, _, length, height, width = latent.shape
    return batch * vae.upscale_ratio[0](length), height * scale, width * scale, chunk_decoder(vae).channels


def decode_images(vae: comfy.sd.VAE, latent: torch.Tensor) -> torch.Tensor:
    """An IMAGE of `decoded_shape`: by `decode` where it supports the VAE, else by ComfyUI's decode."""
    if not can_stream(vae):
        return stock_decode(vae, latent)
    out = torch.empty(decoded_shape(vae, latent), device=vae.output_device, dtype=vae.vae_output_dtype())
    decode(vae, latent, out)
    return out


def decode(
    vae: comfy.sd.VAE, latent: torch.Tensor, out: torch.Tensor, on_frames: Callable[[int], None] = lambda stop: None
) -> None:
    """Decodes a latent [B, C, T, h, w] into `out` of `decoded_shape`: values of 0 to 1 (a TAEHV's may exceed them
    slightly, as in ComfyUI), or in a uint8 tensor of 0 to 255, cut off as ComfyUI cuts them for a video.

    `on_frames(stop)` is called when the frames before `stop` are complete. A frame that does not fit in memory is
    decoded in strips with blended seams; so is the rest after running out of memory. Raises ComfyUI's out-of-memory
    error when the smallest strip does not fit either, and its interrupt between chunks."""
    run = _Decoding(vae, latent, out, on_frames)
    wait_for_kernels(vae.device)
    with comfy.model_management.cuda_device_context(vae.device):
        comfy.model_management.load_models_gpu(
            [vae.patcher], memory_required=chunk_memory(vae, latent), force_full_load=vae.disable_offload
        )
        free = vae.patcher.get_free_memory(vae.device)
        choices = _choices(vae, latent, free)
        if choices[0].strips > 1:
            logger.info(
                "A frame does not fit in the %.1f GB free: decoding in %d strips.", free / 1e9, choices[0].strips
            )
        item = 0
        while item < len(latent):
            # The exception keeps the tensors of the failed attempt alive, so the next attempt is outside of `except`.
            if run.attempt(item, choices[0], last=len(choices) == 1):
                item += choices[0].items
            else:
                comfy.model_management.soft_empty_cache()
                choices.pop(0)
                logger.warning("Out of memory while decoding: trying again in %d strips.", choices[0].strips)


class _Choice(NamedTuple):
    """How to decode: the batch items at a time, and the strips that a frame is cut into."""

    items: int
    strips: int


def _choices(vae: comfy.sd.VAE, latent: torch.Tensor, free: float) -> list[_Choice]:
    """The choices estimated to fit in `free` bytes, fastest first; the one with most strips if none does."""
    # As many at a time as ComfyUI takes: a convolution over another batch size may round differently.
    together = int(free / vae.memory_used_decode(latent.shape, vae.vae_dtype))
    ways = [_Choice(1, count) for count in counts(max(latent.shape[3:]))]
    fitting = [way for way in ways if chunk_memory(vae, latent, way.strips) <= free] or ways[-1:]
    return [_Choice(min(together, len(latent)), 1), *fitting] if together > 1 and len(latent) > 1 else fitting


class _Decoding:
    """One decode: its input, its output and its progress bar."""

    def __init__(self, vae: comfy.sd.VAE, latent: torch.Tensor, out: torch.Tensor, on_frames: Callable[[int], None]):
        self.vae, self.latent, self._on_frames = vae, latent, on_frames
        self._decoder = chunk_decoder(vae)
        self._out = out.unflatten(0, (len(latent), -1))
        self._chunks = len(self._decoder.slices(latent.shape[2]))
        self._bar = comfy.utils.ProgressBar(self._chunks * len(latent))

    def attempt(self, first: int, way: _Choice, last: bool) -> bool:
        """Decodes the batch items from `first`; False when memory ran out and it is not the `last` way."""
        try:
            self._decode(slice(first, min(first + way.items, len(self.latent))), way.strips)
        except Exception as error:
            if last or not _is_out_of_memory(error):
                raise
            return False
        return True

    def _decode(self, items: slice, count: int) -> None:
        scale, frames = self.vae.spacial_compression_decode(), self._out.shape[1]
        axis = 3 if self.latent.shape[3] > self.latent.shape[4] else 4
        cut = strips(self.latent.shape[axis], count)
        # The items before these are done; each of these and the following takes `count` passes.
        done, left = items.start * self._chunks, (len(self.latent) - items.start) * self._chunks * count
        for strip, overlap in zip(cut, shared(cut), strict=True):
            latent = self.latent[items].narrow(axis, strip.start, strip.stop - strip.start)
            frame = 0
            for pixels in self._decoded(latent):
                place = self._out[items, frame : frame + pixels.shape[1]]
                _write(
                    pixels,
                    place.narrow(axis - 1, strip.start * scale, pixels.shape[axis - 1]),
                    axis - 1,
                    overlap * scale,
                )
                frame += pixels.shape[1]
                done, left = done + len(pixels), left - len(pixels)
                self._bar.update_absolute(done, done + left)
                if strip is cut[-1]:
                    self._on_frames(items.start * frames + frame)
        self._on_frames(items.stop * frames)

    def _decoded(self, latent: torch.Tensor) -> Iterator[torch.Tensor]:
        """The frames [items, n, height, width, channels] of each chunk."""
        latent = latent.to(device=self.vae.device, dtype=self.vae.vae_dtype)
        for chunk in self._decoder.chunks(latent):
            pixels = chunk.movedim(1, -1).to(dtype=self.vae.vae_output_dtype())
            del chunk
            if self._out.dtype != torch.uint8:
                pixels = pixels.to(self._out.device)
            yield self.vae.process_output(pixels)


def _write(pixels: torch.Tensor, place: torch.Tensor, axis: int, overlap: int) -> None:
    """Writes one strip's frames, blending the first `overlap` pixels with those that the strip before wrote there."""
    eight_bit = place.dtype == torch.uint8
    if overlap:
        old = place.narrow(axis, 0, overlap).to(pixels)
        seam = pixels.narrow(axis, 0, overlap)
        seam.copy_(blend(old / 255 if eight_bit else old, seam, axis))
    place.copy_(to_8_bit(pixels) if eight_bit else pixels)


def to_8_bit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 of 0 to 1, truncated rather than rounded: as ComfyUI does when it encodes a video."""
    return (pixels * 255).clamp(0, 255).byte()


def _is_out_of_memory(error: Exception) -> bool:
    """An accelerator's error as ComfyUI knows it, or the processor's, which torch raises as a RuntimeError."""
    if comfy.model_management.is_oom(error) or isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in ("can't allocate memory", "bad_alloc"))

"""How the decoder of each supported VAE makes a video chunk by chunk: `chunk_decoder` finds the class for a VAE.

A new kind of VAE is a subclass of ChunkDecoder and a row of `_DECODERS`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from comfy.ldm.wan import vae as wan21
from comfy.ldm.wan import vae2_2 as wan22
from comfy.taesd import taehv
from torch.nn.functional import pixel_shuffle

from .wan_decoder import WanDecoder, fastest_memory_format, is_known

# Latent channels of Wan models: 16, and 48 (Wan 2.2 5B).
WAN_CHANNELS = (16, 48)


class ChunkDecoder(ABC):
    """Decodes with `model`, a VAE's first_stage_model, in the order of its own `decode`: with its bits, unless an
    operator of ours runs on a kernel."""

    size = 1  # latent frames of each chunk after the first

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of a decoded frame."""

    @abstractmethod
    def elements(self, length: int) -> int:
        """Elements alive at once for each pixel of a frame while a chunk of `length` latent frames in all is decoded.

        Traced over the decoder's operators (tests/turbo_core/host/test_decode.py), and a fifth more for what a
        convolution needs inside."""

    @abstractmethod
    def _start(self, latent: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        """A function that decodes one of `slices` after the other of a latent [B, C, T, h, w], each to frames [B,
        channels, t, H, W] before the VAE's process_output."""

    def slices(self, length: int) -> list[slice]:
        """The latent frames that are decoded at a time: the first alone, since it makes one frame and every other
        makes four; then `size`."""
        starts = range(1, length, self.size)
        return [slice(start, stop) for start, stop in zip_longest((0, *starts), starts, fillvalue=length)]

    def chunks(self, latent: torch.Tensor) -> Iterator[torch.Tensor]:
        """The decoded frames of each of `slices`. Raises ComfyUI's interrupt between two."""
        decode = self._start(latent)
        for part in self.slices(latent.shape[2]):
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield decode(part)


class _Wan21(ChunkDecoder):
    """The loop of comfy/ldm/wan/vae.py, and its decoder's layers by ours."""

    size = 2

    @property
    def channels(self) -> int:
        return self.model.decoder.head[-1].out_channels

    def elements(self, length: int) -> int:
        # With more than one chunk the decoder keeps the last frames of its convolutions' inputs.
        return (43 if length > 1 else 6) * self.model.decoder.head[0].gamma.numel()

    def _start(self, latent: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        decoder, x = self.model.decoder, self.model.conv2(latent)
        several_chunks = len(self.slices(latent.shape[2])) > 1
        if is_known(decoder):
            ours = WanDecoder(decoder, several_chunks, fastest_memory_format(latent.device, latent.dtype))
            return lambda part: ours(x[:, :, part])
        memory = [None] * wan21.count_cache_layers(decoder) if several_chunks else None
        return lambda part: torch.cat(decoder(x[:, :, part], feat_cache=memory, feat_idx=[0]), 2)


class _Wan22(ChunkDecoder):
    """The loop of comfy/ldm/wan/vae2_2.py."""

    @property
    def channels(self) -> int:
        return self.model.decoder.head[-1].out_channels // 4  # its output has patches of 2 x 2 pixels

    def elements(self, length: int) -> int:
        return (21 if length > 1 else 8) * self.model.decoder.head[0].gamma.numel()

    def _start(self, latent: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        decoder, x = self.model.decoder, self.model.conv2(latent)
        memory = [None] * wan22.count_conv3d(decoder)

        def decode(part: slice) -> torch.Tensor:
            out = decoder(x[:, :, part], feat_cache=memory, feat_idx=[0], first_chunk=part.start == 0)
            return wan22.unpatchify(out, patch_size=2)

        return decode


class _Taehv(ChunkDecoder):
    """The loop of comfy/taesd/taehv.py over latent frames (not its parallel form, which holds all frames at once)."""

    @property
    def channels(self) -> int:
        return self.model.image_channels

    def elements(self, length: int) -> int:
        # The last layers', whose frames have patches; the frames of a chunk, and as many again while they are joined.
        return 7 * self.model.decoder[-1].in_channels // self.model.patch_size**2 + 8 * self.model.image_channels

    def _start(self, latent: torch.Tensor) -> Callable[[slice], torch.Tensor]:
        x = self.model.process_in(latent)
        memory: dict[int, torch.Tensor] = {}

        def decode(part: slice) -> torch.Tensor:
            frames = [frame for one in x[:, :, part].unbind(2) for frame in self._frames(one, 0, memory)]
            # The first latent frame makes as many frames as every other; all of them but the last are padding.
            return torch.stack(frames[self.model.frames_to_trim if part.start == 0 else 0 :], 2)

        return decode

    def _frames(self, x: torch.Tensor, first: int, memory: dict[int, torch.Tensor]) -> Iterator[torch.Tensor]:
        """The frames that the layers from `first` on make of `x` [B, C, h, w], one at a time. `memory` holds the input
        of each MemBlock for the previous frame."""
        for i, layer in enumerate(self.model.decoder[first:], first):
            if isinstance(layer, taehv.MemBlock):
                # x * 0 as ComfyUI does it, which keeps NaN.
                x, memory[i] = layer(x, memory[i] if i in memory else x * 0), x
            elif isinstance(layer, taehv.TGrow):
                # Its result is [B * stride, C, h, w], in memory [B, stride * C, h, w].
                x = layer(x).view(len(x), -1, *x.shape[2:])
                for part in x.chunk(layer.stride, 1):
                    yield from self._frames(part, i + 1, memory)
                return
            else:
                x = layer(x)
        yield pixel_shuffle(x, self.model.patch_size)


_DECODERS: dict[type[torch.nn.Module], type[ChunkDecoder]] = {
    wan21.WanVAE: _Wan21,
    wan22.WanVAE: _Wan22,
    taehv.TAEHV: _Taehv,
}


def can_stream(vae: comfy.sd.VAE) -> bool:
    """Whether `chunk_decoder` knows this VAE: those of Wan 2.1 (narrower ones too) and Wan 2.2 5B, and a TAEHV with the
    channels of one of these.

    Later hosts also load Qwen Image 2.1 into Wan 2.2's class, whose latents are images (the host's latent_dim is 2),
    and MiniMax H3 into TAEHV, whose frames are trimmed otherwise (24 channels)."""
    return type(vae.first_stage_model) in _DECODERS and vae.latent_dim == 3 and vae.latent_channels in WAN_CHANNELS


def chunk_decoder(vae: comfy.sd.VAE) -> ChunkDecoder:
    """The decoder of a VAE for which `can_stream` holds."""
    return _DECODERS[type(vae.first_stage_model)](vae.first_stage_model)

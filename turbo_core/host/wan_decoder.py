"""The decoder of ComfyUI's Wan 2.1 VAE with less traffic: its parameters and convolutions, in the order of its own
forward, on tensors that are written once.

ComfyUI normalizes in six operators, applies SiLU in a seventh and concatenates the result with the frames before it;
here one operator writes the convolution's input. In 16 bits on an NVIDIA GPU all of it is channels last, as cuDNN
convolves there: it would convert other tensors before and after."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeGuard

import torch
from comfy.ldm.wan import vae as wan21
from einops import rearrange

from ...kernels import rms_norm_silu_pad

_RESIDUAL = (
    wan21.RMS_norm, torch.nn.SiLU, wan21.CausalConv3d,
    wan21.RMS_norm, torch.nn.SiLU, torch.nn.Dropout, wan21.CausalConv3d,
)  # fmt: skip
_HEAD = (wan21.RMS_norm, torch.nn.SiLU, wan21.CausalConv3d)


def fastest_memory_format(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """The format in which the convolutions of a device are fastest in a dtype."""
    tensor_cores = device.type == "cuda" and torch.version.hip is None and dtype in (torch.float16, torch.bfloat16)
    return torch.channels_last_3d if tensor_cores else torch.contiguous_format


def is_known(decoder: object) -> TypeGuard[wan21.Decoder3d]:
    """Whether it is a decoder of the layers that `WanDecoder` computes, as a later ComfyUI's might not be."""
    if not isinstance(decoder, wan21.Decoder3d):
        return False
    blocks = [*decoder.middle, *decoder.upsamples]
    return (
        _types(decoder.head) == _HEAD
        and {*_types(blocks)} <= {wan21.ResidualBlock, wan21.AttentionBlock, wan21.Resample}
        and all(_types(block.residual) == _RESIDUAL for block in blocks if isinstance(block, wan21.ResidualBlock))
    )


def _types(layers: Iterable[object]) -> tuple[type, ...]:
    return tuple(map(type, layers))


class WanDecoder:
    """Decodes the chunks of one latent, in order."""

    def __init__(self, decoder: wan21.Decoder3d, several_chunks: bool, memory_format: torch.memory_format) -> None:
        self._decoder, self._several_chunks, self._memory_format = decoder, several_chunks, memory_format
        # By convolution its input's last frames, by upsampling layer its own input's, None after its first chunk.
        self._past: dict[torch.nn.Module, torch.Tensor | None] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Latent frames [B, C, t, h, w] after the VAE's conv2 -> frames [B, channels, T, 8h, 8w]. T is 1 for the first
        chunk, which is one latent frame, and 4t for every other."""
        conv = self._decoder.conv1
        x = self._formatted(x)
        past = self._past.get(conv)
        if self._several_chunks:
            self._past[conv] = x[:, :, -2:]
        x = self._through(self._decoder.middle, conv(x, past))
        return torch.cat(list(self._upward(list(self._decoder.upsamples), x)), 2)

    def _formatted(self, x: torch.Tensor) -> torch.Tensor:
        """x channels last if the decoder is; else as it is, so that sums have ComfyUI's order."""
        return x if self._memory_format is torch.contiguous_format else x.contiguous(memory_format=self._memory_format)

    def _through(self, layers: Sequence[torch.nn.Module], x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = self._layer(layer, x)
        return x

    def _upward(self, layers: list[torch.nn.Module], x: torch.Tensor) -> Iterator[torch.Tensor]:
        """The frames that the layers and the head make of x, two latent frames or one at a time: where a layer makes
        more, those that follow it see two after two."""
        for i, layer in enumerate(layers):
            x = self._layer(layer, x)
            if isinstance(layer, wan21.Resample) and layer.mode == "upsample3d" and x.shape[2] > 2:
                for part in x.split(2, 2):
                    yield from self._upward(layers[i + 1 :], part)
                return
        norm, _, conv = self._decoder.head
        yield _convolution(conv, self._normed(norm, conv, x))

    def _layer(self, layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, wan21.ResidualBlock):
            return self._residual(layer, x)
        if isinstance(layer, wan21.Resample):
            return self._resampled(layer, x)
        return self._formatted(layer(x))

    def _residual(self, block: wan21.ResidualBlock, x: torch.Tensor) -> torch.Tensor:
        first_norm, _, first, second_norm, _, _, second = block.residual
        y = _convolution(first, self._normed(first_norm, first, x))
        y = self._normed(second_norm, second, y)
        return _convolution(second, y).add_(block.shortcut(x))

    def _normed(self, norm: wan21.RMS_norm, conv: wan21.CausalConv3d, x: torch.Tensor) -> torch.Tensor:
        """The input of a convolution behind a norm and SiLU."""
        past = self._past.get(conv)
        y = rms_norm_silu_pad(x, norm.gamma.flatten().to(x), past)
        if self._several_chunks and past is None:
            self._past[conv] = past = torch.cat((torch.zeros_like(y), y), 2)  # y is one frame
        return y

    def _resampled(self, layer: wan21.Resample, x: torch.Tensor) -> torch.Tensor:
        batch = len(x)
        x = self._more_frames(layer, x) if layer.mode == "upsample3d" else _frames(x)
        return layer.resample(x).unflatten(0, (batch, -1)).movedim(2, 1)

    def _more_frames(self, layer: wan21.Resample, x: torch.Tensor) -> torch.Tensor:
        """Twice as many frames [B * 2t, C, h, w], but of the first chunk, or of the only one, the frames themselves."""
        if layer not in self._past:
            if self._several_chunks:
                self._past[layer] = None
            return _frames(x)
        past, self._past[layer] = self._past[layer], x[:, :, -2:]
        x = layer.time_conv(x, past)
        if self._memory_format is torch.contiguous_format:
            return rearrange(x, "b (n c) t h w -> (b t n) c h w", n=2)
        return rearrange(x, "b (n c) t h w -> (b t n) h w c", n=2).movedim(-1, 1)


def _frames(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "b c t h w -> (b t) c h w")


def _convolution(conv: wan21.CausalConv3d, y: torch.Tensor) -> torch.Tensor:
    """Of a first frame, before which zeros are, or of frames behind the two before them."""
    return conv(y) if y.shape[2] == 1 else super(wan21.CausalConv3d, conv).forward(y)

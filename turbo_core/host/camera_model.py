"""LingBot-World's network: Wan 2.2 I2V whose blocks are scaled and shifted by where the camera looks.

Four linears in every block make of a token's camera embedding a scale and a shift of the video token at the same place, between self- and
cross-attention. The camera is the same for every prompt and step, so it is computed once for a whole batch, and once for
consecutive latent frames in steady motion, which have the same embedding."""

from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import comfy.conds
import comfy.context_windows
import comfy.utils
import torch

from ..camera.embed import CHANNELS
from ..errors import TurboError
from .base_model import TurboWAN
from .conditioning import CAMERA_KEY
from .model import TurboBlock, TurboWanModel

SHIFT = 10.0
CHUNK_TOKENS = 32768  # a scale or shift of so many tokens takes 335 MB in 14B's width, less than the feed-forward
PIXELS_PER_TOKEN = 4  # latent cells in a token, as for the video


class Span(NamedTuple):
    """Which frames of the video some frames of the camera act on: one each, or all on one."""

    camera: slice
    video: slice


class CameraTokens(NamedTuple):
    """tokens [1 or B, camera frames, tokens of a frame, dim]; `chunks`: its frames in bounded pieces, each as (frames, spans within it)."""

    tokens: torch.Tensor
    chunks: tuple[tuple[slice, tuple[Span, ...]], ...]

    @property
    def video_tokens(self) -> int:
        """How many of a block's tokens are the video's; those after them (in-context references) have no camera."""
        _, spans = self.chunks[-1]
        return spans[-1].video.stop * self.tokens.shape[2]


def split_into_chunks(repeats: tuple[int, ...], size: int) -> tuple[tuple[slice, tuple[Span, ...]], ...]:
    """Pieces of at most `size` camera frames, where frame i of the camera stands for repeats[i] frames of the video."""
    chunks, frame = [], 0
    for first in range(0, len(repeats), size):
        spans: list[Span] = []
        for i, count in enumerate(repeats[first : first + size]):
            single = slice(i, i + 1), slice(frame, frame + count)
            previous = spans[-1] if spans else None
            if (
                count == 1
                and previous
                and previous.video.stop - previous.video.start == previous.camera.stop - previous.camera.start
            ):
                spans[-1] = Span(slice(previous.camera.start, i + 1), slice(previous.video.start, frame + 1))
            else:
                spans.append(Span(*single))
            frame += count
        chunks.append((slice(first, first + size), tuple(spans)))
    return tuple(chunks)


class CameraBlock(TurboBlock):
    def __init__(self, cross_attn_type, dim, *args, operation_settings, **kwargs):
        super().__init__(cross_attn_type, dim, *args, operation_settings=operation_settings, **kwargs)
        self.cam_injector_layer1 = _linear(dim, dim, operation_settings)
        self.cam_injector_layer2 = _linear(dim, dim, operation_settings)
        self.cam_scale_layer = _linear(dim, dim, operation_settings)
        self.cam_shift_layer = _linear(dim, dim, operation_settings)

    def inject(self, x: torch.Tensor, camera: CameraTokens | None = None) -> torch.Tensor:
        """x [B, L, dim] scaled and shifted in place; without a camera it is left as it is, as upstream."""
        if camera is None:
            return x
        video = x[:, : camera.video_tokens].unflatten(1, (-1, camera.tokens.shape[2]))
        for frames, spans in camera.chunks:
            tokens = camera.tokens[:, frames]
            hidden = _two_layers(self.cam_injector_layer1, self.cam_injector_layer2, tokens)
            scale, shift = self.cam_scale_layer(hidden), self.cam_shift_layer(hidden)
            for span in spans:
                part = video[:, span.video]
                # x + x * scale rounds less than x * (1 + scale).
                part.addcmul_(part, scale[:, span.camera]).add_(shift[:, span.camera])
        return x


class CameraWanModel(TurboWanModel):
    """TurboWanModel with a camera of `camera_channels` per latent cell. It always runs with float32 modulation, as upstream."""

    block_class = CameraBlock

    def __init__(self, *args, camera_channels: int, operations=None, device=None, dtype=None, **kwargs):
        super().__init__(*args, operations=operations, device=device, dtype=dtype, **kwargs | {"turbo": True})
        settings = {"operations": operations, "device": device, "dtype": dtype}
        self.patch_embedding_wancamctrl = _linear(camera_channels * PIXELS_PER_TOKEN, self.dim, settings)
        self.c2ws_hidden_states_layer1 = _linear(self.dim, self.dim, settings)
        self.c2ws_hidden_states_layer2 = _linear(self.dim, self.dim, settings)

    def block_inputs(self, grid, dtype, camera=None, camera_repeats=None, **_) -> dict:
        """`camera` [1 or B, channels, frames, height, width] in latent cells, of which frame i stands for camera_repeats[i] frames."""
        if camera is None:
            return {}
        cells = torch.nn.functional.pixel_unshuffle(camera.to(dtype).transpose(1, 2), self.patch_size[1])
        tokens = self.patch_embedding_wancamctrl(cells.flatten(3).transpose(2, 3))
        tokens = _two_layers(self.c2ws_hidden_states_layer1, self.c2ws_hidden_states_layer2, tokens)
        repeats = camera_repeats or (1,) * tokens.shape[1]
        if (sum(repeats), *cells.shape[3:]) != tuple(grid):
            raise TurboError(f"The camera covers {[sum(repeats), *cells.shape[3:]]} tokens and the video {list(grid)}.")
        return {"camera": CameraTokens(tokens, split_into_chunks(repeats, max(1, CHUNK_TOKENS // tokens.shape[2])))}


class CameraWAN(TurboWAN):
    """A LingBot-World model. Conditioning without a camera runs without one, which is not the same as a camera that stands still."""

    network_class = CameraWanModel

    def __init__(self, model_config, spec, source, device=None):
        model_config.unet_config["camera_channels"] = CHANNELS[spec.camera]
        # Where its schedule is without a ModelSamplingSD3 node; a copy, since ComfyUI's class holds the original.
        model_config.sampling_settings = model_config.sampling_settings | {"shift": SHIFT}
        super().__init__(model_config, spec, source, device=device)
        self.memory_usage_factor *= 1.25  # the camera's tokens and one chunk of its scale and shift

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        camera = kwargs.get(CAMERA_KEY)
        if camera is not None:
            out["camera"] = CONDCamera(camera)
        return out

    def resize_cond_for_context_window(
        self, cond_key, cond_value, window, x_in, device, retain_index_list=(), **kwargs
    ):
        if cond_key == "camera":
            return comfy.context_windows.slice_cond(
                cond_value, window, x_in, device, temporal_dim=2, retain_index_list=list(retain_index_list)
            )
        return super().resize_cond_for_context_window(
            cond_key, cond_value, window, x_in, device, retain_index_list=list(retain_index_list), **kwargs
        )

    def _apply_model(self, *args, camera: "CameraFrames | None" = None, **kwargs):
        if camera is not None:
            kwargs |= {"camera": camera.frames, "camera_repeats": camera.repeats}
        return super()._apply_model(*args, **kwargs)


class CameraFrames(NamedTuple):
    """frames [1 or B, channels, n, height, width]; frame i stands for repeats[i] of the embedding's."""

    frames: torch.Tensor
    repeats: tuple[int, ...]


class CONDCamera(comfy.conds.CONDRegular):
    """A camera embedding [1 or B, channels, frames, height, width] that stays one for a batch of videos and for prompts that share it."""

    def process_cond(self, batch_size, area=None, **kwargs):
        if area is None and len(self.cond) == 1:
            return self
        camera = self.cond
        for dim in range(0 if area is None else len(area) // 2):
            camera = camera.narrow(dim + 2, area[dim + len(area) // 2], area[dim])
        return self._copy_with(camera if len(camera) == 1 else comfy.utils.repeat_to_batch_size(camera, batch_size))

    def can_concat(self, other):
        if len(self.cond) > 1 or len(other.cond) > 1:
            return super().can_concat(other)
        return self.cond is other.cond or torch.equal(self.cond, other.cond)

    def concat(self, others) -> CameraFrames:
        if len(self.cond) > 1:
            return without_repeats(super().concat(others))
        return self._frames

    @cached_property
    def _frames(self) -> CameraFrames:
        return without_repeats(self.cond)


def without_repeats(camera: torch.Tensor) -> CameraFrames:
    """The frames of an embedding [B, channels, frames, height, width] that differ from the one before."""
    changes = (camera[:, :, 1:] != camera[:, :, :-1]).movedim(2, 0).flatten(1).any(dim=1).tolist()
    starts = [0, *(i for i, changed in enumerate(changes, 1) if changed)]
    repeats = tuple(end - start for start, end in pairwise([*starts, camera.shape[2]]))
    return CameraFrames(camera[:, :, starts], repeats)


def _linear(in_width: int, out_width: int, settings: dict) -> torch.nn.Module:
    return settings["operations"].Linear(
        in_width, out_width, device=settings.get("device"), dtype=settings.get("dtype")
    )


def _two_layers(first: torch.nn.Module, second: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """second(silu(first(x))) + x"""
    return second(torch.nn.functional.silu(first(x), inplace=True)).add_(x)

"""LingBot-World's network: Wan 2.2 I2V whose blocks scale and shift their activations by a camera embedding.

Between self- and cross-attention of every block, four linears compute from a token's camera embedding a scale and a
shift of the video token at the same position. The embedding is the same for every prompt and step, so it is computed
once for a whole batch, and once for consecutive latent frames in steady motion, which have equal embeddings."""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import comfy.conds
import comfy.utils
import torch

from ..camera.embed import CHANNELS
from ..checkpoint.layout import WanSpec
from ..errors import TurboError
from .base_model import TurboWAN
from .conditioning import CAMERA_KEY
from .model import TurboBlock, TurboWanModel
from .self_attention import build_linear

SHIFT = 10.0
CHUNK_TOKENS = 32768  # a scale or shift of so many tokens takes 335 MB in 14B's width, less than the feed-forward
CELLS_PER_TOKEN = 4  # latent cells, as for the video


class Span(NamedTuple):
    """Camera frames and the video frames that they condition: as many of each, or one camera frame for several video
    frames."""

    camera: slice
    video: slice


class CameraTokens(NamedTuple):
    """tokens [1 or B, camera frames, tokens of a frame, dim], of which frame i conditions repeats[i] frames of the
    video. They begin at token `start` of a block's input; tokens after them (in-context references) have no camera."""

    tokens: torch.Tensor
    repeats: tuple[int, ...]
    start: int = 0

    def cut(self, start: int, stop: int) -> Iterator["CameraTokens"]:
        """The camera tokens of a range of the video's tokens, which need not begin or end with a frame."""
        size = self.tokens.shape[2]
        cameras = [i for i, count in enumerate(self.repeats) for _ in range(count)]  # of each frame of the video
        at, stop = start, min(stop, len(cameras) * size)
        while at < stop:
            frame, offset = divmod(at, size)
            if offset or stop - at < size:
                end, frames = min(stop, at - offset + size), cameras[frame : frame + 1]
            else:
                end, frames = stop - stop % size, cameras[frame : stop // size]
            tokens = self.tokens[:, frames[0] : frames[-1] + 1, offset : offset + end - at]
            yield CameraTokens(tokens, tuple(Counter(frames).values()), at - start)
            at = end


class Camera(NamedTuple):
    """The camera as `inject` of every block takes it."""

    parts: tuple[CameraTokens, ...]

    def cut(self, start: int, stop: int) -> "Camera":
        """The camera for blocks that run on a range of the video's tokens."""
        return Camera(tuple(piece for part in self.parts for piece in part.cut(start, stop)))


def split_into_chunks(repeats: tuple[int, ...], size: int) -> tuple[tuple[slice, tuple[Span, ...]], ...]:
    """Chunks of at most `size` camera frames, of which frame i conditions repeats[i] frames of the video."""
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


class LingBotBlock(TurboBlock):
    """TurboBlock with the four camera linears, named as in LingBot-World's checkpoints."""

    def __init__(self, cross_attn_type: str, dim: int, *args: Any, operation_settings: dict[str, Any], **kwargs: Any):
        super().__init__(cross_attn_type, dim, *args, operation_settings=operation_settings, **kwargs)
        self.cam_injector_layer1 = build_linear(dim, dim, operation_settings)
        self.cam_injector_layer2 = build_linear(dim, dim, operation_settings)
        self.cam_scale_layer = build_linear(dim, dim, operation_settings)
        self.cam_shift_layer = build_linear(dim, dim, operation_settings)

    def inject(self, x: torch.Tensor, camera: Camera | None) -> torch.Tensor:
        """x [B, L, dim], scaled and shifted in place; unchanged without a camera, as upstream."""
        for part in camera.parts if camera is not None else ():
            self._inject_part(x, part)
        return x

    def _inject_part(self, x: torch.Tensor, camera: CameraTokens) -> None:
        size = camera.tokens.shape[2]
        video = x[:, camera.start : camera.start + sum(camera.repeats) * size].unflatten(1, (-1, size))
        for frames, spans in split_into_chunks(camera.repeats, max(1, CHUNK_TOKENS // size)):
            tokens = camera.tokens[:, frames]
            hidden = _two_layers(self.cam_injector_layer1, self.cam_injector_layer2, tokens)
            scale, shift = self.cam_scale_layer(hidden), self.cam_shift_layer(hidden)
            for span in spans:
                part = video[:, span.video]
                # x + x * scale rounds less than x * (1 + scale).
                part.addcmul_(part, scale[:, span.camera]).add_(shift[:, span.camera])


class LingBotWanModel(TurboWanModel):
    """TurboWanModel with a camera of `camera_channels` per latent cell. It always runs with float32 modulation, as
    upstream."""

    block_class = LingBotBlock

    def __init__(
        self,
        *args: Any,
        camera_channels: int,
        operations: Any = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, operations=operations, device=device, dtype=dtype, **kwargs | {"turbo": True})
        settings = {"operations": operations, "device": device, "dtype": dtype}
        self.patch_embedding_wancamctrl = build_linear(camera_channels * CELLS_PER_TOKEN, self.dim, settings)
        self.c2ws_hidden_states_layer1 = build_linear(self.dim, self.dim, settings)
        self.c2ws_hidden_states_layer2 = build_linear(self.dim, self.dim, settings)

    def camera_of(
        self,
        x: torch.Tensor,
        dtype: torch.dtype,
        camera: torch.Tensor | None = None,
        camera_repeats: tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> Camera | None:
        """`camera` [1 or B, channels, frames, height, width] in latent cells, of which frame i conditions
        camera_repeats[i] frames.

        Raises TurboError for a camera that does not cover the video's tokens."""
        if camera is None:
            return None
        cells = torch.nn.functional.pixel_unshuffle(camera.to(dtype).transpose(1, 2), self.patch_size[1])
        tokens = self.patch_embedding_wancamctrl(cells.flatten(3).transpose(2, 3))
        tokens = _two_layers(self.c2ws_hidden_states_layer1, self.c2ws_hidden_states_layer2, tokens)
        repeats = camera_repeats or (1,) * tokens.shape[1]
        grid = [size // patch for size, patch in zip(x.shape[2:], self.patch_size, strict=True)]
        if [sum(repeats), *cells.shape[3:]] != grid:
            raise TurboError(f"The camera covers {[sum(repeats), *cells.shape[3:]]} tokens and the video {grid}.")
        return Camera((CameraTokens(tokens, repeats),))


class LingBotWAN(TurboWAN):
    """A LingBot-World model. Conditioning without a camera runs without one, which is not the same as a static
    camera."""

    network_class = LingBotWanModel

    def __init__(self, model_config: Any, spec: WanSpec, source: Path, **kwargs: Any):
        model_config.unet_config["camera_channels"] = CHANNELS[spec.camera]
        # The default of its schedule, which ModelSamplingSD3 changes; a copy, since ComfyUI's class holds the original.
        model_config.sampling_settings = model_config.sampling_settings | {"shift": SHIFT}
        super().__init__(model_config, spec, source, **kwargs)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """As ComfyUI's, with the camera. Raises TurboError as `check_conditioning`."""
        out = super().extra_conds(**kwargs)
        camera = kwargs.get(CAMERA_KEY)
        if camera is not None:
            out["camera"] = CONDCamera(camera)
        return out

    def _apply_model(self, *args: Any, camera: "CameraFrames | None" = None, **kwargs: Any) -> torch.Tensor:
        if camera is not None:
            kwargs |= {"camera": camera.frames, "camera_repeats": camera.repeats}
        return super()._apply_model(*args, **kwargs)


class CameraFrames(NamedTuple):
    """frames [1 or B, channels, n, height, width], of which frame i is repeated repeats[i] times in the embedding."""

    frames: torch.Tensor
    repeats: tuple[int, ...]


class CONDCamera(comfy.conds.CONDRegular):
    """A camera embedding [1 or B, channels, frames, height, width]; one of batch size 1 is not repeated for a batch of
    videos or for prompts that share it."""

    def process_cond(self, batch_size: int, area: tuple[int, ...] | None = None, **kwargs: Any) -> "CONDCamera":
        """As ComfyUI's; `area` holds the sizes, then the starts, of frames, height and width in latent cells."""
        if area is None and len(self.cond) == 1:
            return self
        camera = self.cond
        if area is not None:
            sizes, starts = area[: len(area) // 2], area[len(area) // 2 :]
            for dim, (size, start) in enumerate(zip(sizes, starts, strict=True), 2):
                camera = camera.narrow(dim, start, size)
        return self._copy_with(camera if len(camera) == 1 else comfy.utils.repeat_to_batch_size(camera, batch_size))

    def can_concat(self, other: "CONDCamera") -> bool:
        """Whether two conditions can share a call: equal embeddings, or one embedding per video in each."""
        if len(self.cond) > 1 or len(other.cond) > 1:
            return super().can_concat(other)
        return self.cond is other.cond or torch.equal(self.cond, other.cond)

    def concat(self, others: list["CONDCamera"]) -> CameraFrames:
        """The frames of all conditions, for which `can_concat` holds, without repeats."""
        if len(self.cond) > 1:
            return without_repeats(super().concat(others))
        return self._frames

    @cached_property
    def _frames(self) -> CameraFrames:
        return without_repeats(self.cond)


def without_repeats(camera: torch.Tensor) -> CameraFrames:
    """The frames of an embedding [B, channels, frames, height, width] that differ from the frame before."""
    changes = (camera[:, :, 1:] != camera[:, :, :-1]).movedim(2, 0).flatten(1).any(dim=1).tolist()
    starts = [0, *(i for i, changed in enumerate(changes, 1) if changed)]
    repeats = tuple(end - start for start, end in pairwise([*starts, camera.shape[2]]))
    return CameraFrames(camera[:, :, starts], repeats)


def _two_layers(first: torch.nn.Module, second: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """second(silu(first(x))) + x."""
    return second(torch.nn.functional.silu(first(x), inplace=True)).add_(x)

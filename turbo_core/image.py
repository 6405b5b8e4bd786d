"""Prepares a picture as the first frame of a video: three channels, and a size of the area of the models' training."""

import math

import torch
from einops import rearrange

from .errors import TurboError

# width, height: the sizes that TurboDiffusion offers
SIZES = {
    "480p": {"16:9": (832, 480), "9:16": (480, 832), "4:3": (640, 480), "3:4": (480, 640), "1:1": (640, 640)},
    "720p": {"16:9": (1280, 720), "9:16": (720, 1280), "4:3": (960, 720), "3:4": (720, 960), "1:1": (960, 960)},
}
OF_IMAGE = "image"
ASPECTS = (OF_IMAGE, "16:9", "9:16", "4:3", "3:4", "1:1")
FITS = ("stretch", "crop", "pad")
BACKGROUNDS = {"black": 0.0, "gray": 0.5, "white": 1.0}
MULTIPLE = 16  # pixels of one token: 8 of the VAE times a patch of 2


def target_size(width: int, height: int, resolution: str, aspect: str) -> tuple[int, int]:
    """Width and height of the video for a picture of that size, in pixels.

    The aspect "image" keeps the picture's own and the area of 16:9, rounded to multiples of 16 (as upstream's adaptive
    resolution, inference/wan2.2_i2v_infer.py)."""
    sizes = SIZES[resolution]
    if aspect != OF_IMAGE:
        return sizes[aspect]
    area, ratio = math.prod(sizes["16:9"]), height / width
    wide, high = (round(math.sqrt(a) / MULTIPLE) * MULTIPLE for a in (area / ratio, area * ratio))
    return max(wide, MULTIPLE), max(high, MULTIPLE)


def to_rgb(frame: torch.Tensor, background: float) -> torch.Tensor:
    """One picture [height, width, channels] of 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha) channels as float32
    [height, width, 3] of 0 to 1, blended with the background by alpha."""
    frame = frame.float().clamp(0, 1)
    channels = frame.shape[-1]
    color = frame[..., :3] if channels >= 3 else frame[..., :1].expand(*frame.shape[:-1], 3)
    return color if channels % 2 else torch.lerp(torch.full_like(color, background), color, frame[..., -1:])


def resize(frame: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """A picture [h, w, C] at another size: bilinear with antialiasing, as torchvision's Resize, which upstream uses."""
    if frame.shape[:2] == (height, width):
        return frame
    planes = rearrange(frame, "h w c -> 1 c h w")
    resized = torch.nn.functional.interpolate(planes, (height, width), mode="bilinear", antialias=True)
    return rearrange(resized, "1 c h w -> h w c")


def fit(frame: torch.Tensor, width: int, height: int, how: str, background: float) -> torch.Tensor:
    """A picture [h, w, 3] as [height, width, 3]: "stretch" ignores its aspect, "crop" fills the size and cuts what
    sticks out, "pad" shows all of it before the background. Both keep it in the middle."""
    if how == "stretch":
        return resize(frame, width, height)
    old_height, old_width = frame.shape[:2]
    scales = width / old_width, height / old_height
    if how == "crop":
        # Cut first: a long, thin picture scaled to fill the size could be of any length.
        scale = max(scales)
        wide, high = (_rounded(side / scale, old) for side, old in ((width, old_width), (height, old_height)))
        left, top = (old_width - wide) // 2, (old_height - high) // 2
        return resize(frame[top : top + high, left : left + wide], width, height)
    scale = min(scales)
    wide, high = _rounded(old_width * scale, width), _rounded(old_height * scale, height)
    left, top = (width - wide) // 2, (height - high) // 2
    padded = torch.full((height, width, 3), background, dtype=frame.dtype, device=frame.device)
    padded[top : top + high, left : left + wide] = resize(frame, wide, high)
    return padded


def _rounded(length: float, most: int) -> int:
    return min(max(round(length), 1), most)


def prepare(
    image: torch.Tensor, resolution: str, aspect: str, how: str, background: str
) -> tuple[torch.Tensor, int, int]:
    """An IMAGE [batch, height, width, channels] or MASK [batch, height, width] as float32 [batch, H, W, 3] with its
    width and height. Raises TurboError for a tensor that is not a picture."""
    frames = image.unsqueeze(-1) if image.ndim in (2, 3) else image
    if frames.ndim == 3:
        frames = frames.unsqueeze(0)
    if frames.ndim != 4 or frames.shape[-1] not in (1, 2, 3, 4) or 0 in frames.shape:
        raise TurboError(
            f"The image is {list(image.shape)}: connect one of [batch, height, width] or [batch, height, width, "
            "channels] with 1 "
            "(gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha) channels."
        )
    color = BACKGROUNDS[background]
    width, height = target_size(frames.shape[2], frames.shape[1], resolution, aspect)
    out = torch.empty((len(frames), height, width, 3), device=frames.device)
    for place, frame in zip(out, frames, strict=True):
        place.copy_(fit(to_rgb(frame, color), width, height, how, color))
    return out, width, height

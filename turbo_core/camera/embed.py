"""The camera embedding: the direction of every pixel's ray, with its origin or the keys held, on the latent's grid."""

from typing import Literal

import numpy as np
import torch
from einops import rearrange, repeat

from ..errors import TurboError
from .path import FRAMES_PER_LATENT, CameraPath
from .pose import relative_poses

Control = Literal["cam", "act"]
CONTROLS: tuple[Control, ...] = ("cam", "act")
CELL = 8  # pixels of a latent cell along each axis
# Numbers for each pixel: ray origin and direction, or ray direction and the four keys
CHANNELS = {"cam": 6 * CELL * CELL, "act": 7 * CELL * CELL}


def embed(path: CameraPath, width: int, height: int, control: Control) -> torch.Tensor:
    """[1, 384 ("cam") or 448 ("act"), latent frames, height / 8, width / 8] float32, as LingBot-World's cam_utils
    computes it.

    Rays go through pixel centers, in the axes of the previous latent frame; their origins are not crossed with the
    directions as true Pluecker coordinates would be. Raises TurboError for a size that is not a multiple of 16 and for
    "act" without keys."""
    if min(width, height) < 2 * CELL or width % (2 * CELL) or height % (2 * CELL):
        raise TurboError(f"The size {width}x{height} does not fit: width and height must be multiples of {2 * CELL}.")
    held = path.keys if control == "act" else None
    if control == "act" and held is None:
        raise TurboError(
            "control act is driven by keys and this camera has none: add action.npy to the folder, or use a path "
            "from actions or a preset."
        )
    poses = torch.from_numpy(relative_poses(path))
    intrinsics = path.intrinsics_at(width, height)
    result = torch.empty(1, CHANNELS[control], len(poses), height // CELL, width // CELL)
    keys = None if held is None else torch.from_numpy(held[::FRAMES_PER_LATENT].astype(np.float32))
    for i, pose in enumerate(poses):
        if i == 0 or (intrinsics[i] != intrinsics[i - 1]).any():
            directions = pixel_directions(intrinsics[i], width, height)
        rays = rearrange((directions @ pose[:3, :3].T).float(), "h w xyz -> xyz h w")
        constant = repeat(pose[:3, 3].float() if keys is None else keys[i], "c -> c h w", h=height, w=width)
        pixels = torch.cat([constant, rays] if keys is None else [rays, constant])
        result[0, :, i] = torch.nn.functional.pixel_unshuffle(pixels, CELL)
    return result


def pixel_directions(intrinsics: np.ndarray, width: int, height: int) -> torch.Tensor:
    """[height, width, 3] float64: unit vectors from the camera through the pixels' centers, in its own axes."""
    fx, fy, cx, cy = map(float, intrinsics)
    x = (torch.arange(width, dtype=torch.float64) + 0.5 - cx) / fx
    y = (torch.arange(height, dtype=torch.float64) + 0.5 - cy) / fy
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1), dim=-1)

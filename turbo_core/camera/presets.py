"""Ready-made camera moves."""

import math

import numpy as np

from ..errors import TurboError
from .actions import rotation_x, rotation_y
from .path import CameraPath, check_length

PRESETS = (
    "forward",
    "back",
    "orbit_left",
    "orbit_right",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "dolly_zoom",
    "static",
)
EASES = ("linear", "smooth")
ORBIT = math.radians(60)  # around a point one unit ahead
PAN = math.radians(60)
TILT = math.radians(30)
# The key that is held down in each preset, for models driven by keys
_HELD = {"forward": "w", "back": "s", "orbit_left": "a", "orbit_right": "d", "dolly_zoom": "w"}


def path_from_preset(preset: str, amount: float, ease: str, length: int, fov: float = 0.0) -> CameraPath:
    """A move of `length` frames (4n + 1). `ease` smooth starts and stops gently.

    `amount` 1 pans or orbits 60 degrees, tilts 30, and halves the distance in a dolly zoom, whose focal length follows
    so that what is one unit ahead keeps its size. LingBot normalizes the length of straight moves: `amount` scales them
    after that. Raises TurboError for values out of range."""
    check_length(length)
    if preset not in PRESETS or ease not in EASES:
        raise TurboError(f"There is no preset {preset!r} with ease {ease!r}: choose one of {', '.join(PRESETS)}.")
    if not (math.isfinite(amount) and amount >= 0):
        raise TurboError(f"amount is {amount}: choose 0 or more; 1 is a normal move.")
    t = np.linspace(0.0, 1.0, length) if length > 1 else np.zeros(1)
    progress = t if ease == "linear" else t * t * (3 - 2 * t)
    straight = preset in ("forward", "back")
    keys = np.zeros((length, 4), dtype=bool)
    if preset in _HELD and amount:
        keys[:, "wasd".index(_HELD[preset])] = True
    return CameraPath(
        np.stack([_pose(preset, amount, u) for u in progress]),
        length,
        fov=fov,
        zoom=0.5 ** (amount * progress) if preset == "dolly_zoom" else None,
        keys=keys,
        speed=amount if straight else 1.0,
    )


def _pose(preset: str, amount: float, progress: float) -> np.ndarray:
    """The pose [4, 4] after that share of the move."""
    pose = np.eye(4)
    name, _, side = preset.partition("_")
    sign = -1.0 if side in ("left", "down") else 1.0
    if name in ("forward", "back"):
        pose[2, 3] = progress if name == "forward" else -progress
    elif name == "dolly":
        pose[2, 3] = 1 - 0.5 ** (amount * progress)
    elif name == "pan":
        pose[:3, :3] = rotation_y(sign * PAN * amount * progress)
    elif name == "tilt":
        pose[:3, :3] = rotation_x(sign * TILT * amount * progress)
    elif name == "orbit":
        # Going left around something means turning right.
        pose[:3, :3] = rotation_y(-sign * ORBIT * amount * progress)
        pose[:3, 3] = np.array([0, 0, 1]) - pose[:3, 2]
    return pose

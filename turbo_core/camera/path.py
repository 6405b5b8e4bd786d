"""A camera path: the pose, the lens and the keys of a camera in every frame."""

import dataclasses
import math

import numpy as np

from ..errors import TurboError

# LingBot's intrinsics are pixels of a picture of this size (width, height), whatever is generated.
REFERENCE_SIZE = (832, 480)
LINGBOT_INTRINSICS = (502.9, 502.9, 416.0, 240.0)  # fx, fy, cx, cy: a horizontal field of view of 79 degrees
FRAMES_PER_LATENT = 4
MAX_FRAMES = 4001


@dataclasses.dataclass(frozen=True, eq=False)
class CameraPath:
    """Where the camera stands in each of `frames` video frames (4n + 1 of them).

    `poses` [N, 4, 4] float64: camera to world, OpenCV axes (x right, y down, z forward), any world frame and unit. N is
    `frames`, or one more when the poses come from keys (a pose before the first key and one after each). `intrinsics`:
    fx, fy, cx, cy in pixels of REFERENCE_SIZE. `fov`: horizontal degrees at the generated size with square pixels,
    instead of `intrinsics`; 0 for none. `zoom` [frames]: what the focal length is multiplied by. `keys` [frames, 4]: w,
    a, s, d, each 0 or 1, or None if unknown. `speed` scales the translations after LingBot's normalization (1: as
    upstream)."""

    poses: np.ndarray
    frames: int
    intrinsics: tuple[float, float, float, float] = LINGBOT_INTRINSICS
    fov: float = 0.0
    zoom: np.ndarray | None = None
    keys: np.ndarray | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        check_length(self.frames)
        if len(self.poses) not in (self.frames, self.frames + 1):
            raise ValueError(f"{len(self.poses)} poses for {self.frames} frames")

    @property
    def latent_frames(self) -> int:
        return (self.frames - 1) // FRAMES_PER_LATENT + 1

    def intrinsics_at(self, width: int, height: int) -> np.ndarray:
        """[latent frames, 4] fx, fy, cx, cy in pixels of a picture of that size.

        LingBot scales its intrinsics along each axis, so that a portrait picture gets pixels that are not square; `fov`
        does not."""
        if self.fov:
            focal = width / 2 / math.tan(math.radians(self.fov) / 2)
            one = np.array([focal, focal, width / 2, height / 2])
        else:
            one = np.array(self.intrinsics) * np.tile(np.divide((width, height), REFERENCE_SIZE), 2)
        every = np.tile(one, (self.latent_frames, 1))
        if self.zoom is not None:
            every[:, :2] *= self.zoom[::FRAMES_PER_LATENT, None]
        return every


def shortened(length: int) -> int:
    """The longest 4n + 1 that is at most `length`."""
    return (length - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1


def check_length(length: int) -> None:
    """Raises TurboError unless a video can have that many frames: 4n + 1, at most MAX_FRAMES."""
    if not 1 <= length <= MAX_FRAMES:
        raise TurboError(f"A camera path of {length} frames is not possible: choose 1 to {MAX_FRAMES}.")
    if length != shortened(length):
        lower = shortened(length)
        raise TurboError(
            f"length is {length}: Wan videos have 4n + 1 frames, so choose {lower} or {lower + FRAMES_PER_LATENT}."
        )


def check_fov(fov: float) -> None:
    """Raises TurboError unless `fov` is 0 (none) or an angle that a lens can see."""
    if fov and not 1 <= fov <= 170:
        raise TurboError(f"fov is {fov}: choose 1 to 170 degrees, or 0 for LingBot's own 79.")

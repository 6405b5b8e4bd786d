"""Camera paths from keys: WASD moves over the ground, IJKL turns, as in LingBot-World's demo."""

import math

import numpy as np

from ..errors import TurboError
from .path import FRAMES_PER_LATENT, MAX_FRAMES, CameraPath, shortened

KEYS = "wasdijkl"
MOVE = 0.05  # per frame, in a unit that LingBot's normalization removes
TURN = math.radians(2.0)  # per frame
PITCH_LIMIT = math.radians(85.0)
_SHOWN = 40  # characters of a wrong segment
EXAMPLE = "w-10,iw-15,none-5"


def parse_actions(text: str) -> np.ndarray:
    """[frames, 8] bool, in the order of KEYS, from a string like "w-10,iw-15,none-5": keys held, then for how many
    frames.

    As upstream, spaces, case and full-width commas do not matter. Raises TurboError for anything else."""
    segments = "".join(text.split()).lower().replace("\uff0c", ",")
    if not segments:
        raise TurboError(f"actions is empty: write keys and frames, for example {EXAMPLE}.")
    rows: list[list[bool]] = []
    for segment in segments.split(","):
        names, dash, count = segment.rpartition("-")
        keys = "" if names == "none" else names
        number = count.lstrip("0")
        if not (names and dash and number and count.isascii() and count.isdigit() and set(keys) <= set(KEYS)):
            shown = segment if len(segment) <= _SHOWN else f"{segment[:_SHOWN]}..."
            raise TurboError(
                f"actions has {shown!r}: write keys (w a s d to move, i j k l to turn, or none), a dash and a number "
                "of frames, "
                f"for example {EXAMPLE}."
            )
        # int() refuses numbers of thousands of digits.
        if len(number) > len(str(MAX_FRAMES)) or len(rows) + int(number) > MAX_FRAMES:
            raise TurboError(f"actions is longer than {MAX_FRAMES} frames: choose fewer.")
        rows += [[key in keys for key in KEYS]] * int(number)
    return np.array(rows)


def walk(keys: np.ndarray) -> np.ndarray:
    """Poses [frames + 1, 4, 4] of a camera that starts at the origin and follows `keys` [frames, 8].

    W and S move along the view, A and D across it, both on the ground whatever the pitch; I and K pitch up and down to
    85 degrees, J and L turn left and right."""
    poses = [np.eye(4)]
    pitch = 0.0
    for w, a, s, d, i, j, k, l in keys.astype(int):
        pitch_step, yaw_step = TURN * (i - k), TURN * (l - j)
        if abs(pitch + pitch_step) > PITCH_LIMIT:
            pitch_step = 0.0
        pitch += pitch_step
        pose = poses[-1].copy()
        pose[:3, :3] = rotation_y(yaw_step) @ pose[:3, :3] @ rotation_x(pitch_step)
        pose[:3, 3] += MOVE * ((w - s) * _on_ground(pose[:3, 2]) + (d - a) * _on_ground(pose[:3, 0]))
        poses.append(pose)
    return np.stack(poses)


def path_from_actions(text: str, max_length: int = 0, fov: float = 0.0) -> CameraPath:
    """The path of an action string: cut to `max_length` frames if that is not 0, then extended to 4n + 1 frames by
    idling at the end, as upstream does. Raises TurboError for a string that `parse_actions` refuses."""
    keys = parse_actions(text)
    if max_length:
        keys = keys[: shortened(max_length)]
    idle = -(len(keys) - 1) % FRAMES_PER_LATENT
    keys = np.concatenate([keys, np.zeros((idle, len(KEYS)), dtype=bool)])
    return CameraPath(walk(keys), len(keys), fov=fov, keys=keys[:, :4])


def rotation_x(angle: float) -> np.ndarray:
    """[3, 3]; a positive angle looks up (y is down)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def rotation_y(angle: float) -> np.ndarray:
    """[3, 3]; a positive angle looks to the right."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _on_ground(direction: np.ndarray) -> np.ndarray:
    flat = direction * (1, 0, 1)
    return flat / (np.linalg.norm(flat) + 1e-6)

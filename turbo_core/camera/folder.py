"""Camera paths from LingBot-World's files: poses.npy, intrinsics.npy and action.npy in one folder."""

import dataclasses
import tokenize
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import TurboError
from .path import LINGBOT_INTRINSICS, MAX_FRAMES, CameraPath, shortened

Convention = Literal["opencv", "opengl"]
CONVENTIONS: tuple[Convention, ...] = ("opencv", "opengl")
POSES, INTRINSICS, ACTION = "poses.npy", "intrinsics.npy", "action.npy"
# What numpy raises for a file that is cut, is not in its format, or holds objects
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    SyntaxError,
    OverflowError,
    TypeError,
    zipfile.BadZipFile,
    tokenize.TokenError,
)
FARTHEST = 1e12  # of a camera from its world's origin, in any unit; differences of larger numbers lose their digits
LARGEST = 1e6  # pixels of a focal length or center
ROTATION_TOLERANCE = 0.01  # estimated poses in float32 are within 1e-3


def find_folder(root: Path, folder: str) -> Path:
    """The folder of that name under `root`, all links resolved. Raises TurboError if it is not there or leads out of
    `root`."""
    if not folder.strip():
        raise TurboError("folder is empty: name a folder under ComfyUI's input directory that holds poses.npy.")
    return _inside(root, root / folder.strip(), f"folder {folder!r}")


def camera_files(folder: Path) -> list[Path]:
    """The files in a folder that a path is read from."""
    return [path for path in (folder / name for name in (POSES, INTRINSICS, ACTION)) if path.is_file()]


def path_from_folder(
    root: Path, folder: str, convention: Convention, max_length: int = 0, fov: float = 0.0
) -> CameraPath:
    """The path in `folder` under `root`, cut to the shortest file, to `max_length` frames if that is not 0, and to 4n +
    1.

    poses.npy [F, 4, 4] is camera to world in OpenCV axes, or in OpenGL's (x right, y up, z back); intrinsics.npy [F,
    4], of which the first row counts, as upstream, is fx, fy, cx, cy in pixels at 832x480 and may be absent; action.npy
    [F, 4] is w, a, s, d and needed by the models driven by them. Nothing in the files is executed. Raises TurboError
    for files that are something else."""
    place = find_folder(root, folder)
    poses = _read(root, place, POSES)
    if poses is None:
        raise TurboError(f"{POSES} is not in the folder {folder!r}: put LingBot's camera files there.")
    _check_poses(poses)
    if convention == "opengl":
        poses[:, :, 1:3] *= -1
    intrinsics = _read(root, place, INTRINSICS)
    keys = _read(root, place, ACTION)
    if keys is not None:
        _check_keys(keys)
    frames = shortened(min(len(poses), MAX_FRAMES, max_length or MAX_FRAMES, len(poses) if keys is None else len(keys)))
    path = CameraPath(poses[:frames], frames, fov=fov, keys=None if keys is None else keys[:frames].astype(bool))
    return dataclasses.replace(
        path, intrinsics=LINGBOT_INTRINSICS if intrinsics is None else _first_intrinsics(intrinsics)
    )


def _read(root: Path, folder: Path, name: str) -> np.ndarray | None:
    """The array in a file as float64; None if there is no such file."""
    if not (folder / name).exists():
        return None
    path = _inside(root, folder / name, name)
    if not path.is_file():  # a FIFO or a device may never end
        raise TurboError(f"{name} is not a file: save an array of numbers with numpy.save.")
    try:
        # Mapped, so that a header that declares more data than the file has takes no memory.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise TurboError(f"{name} is not a plain numpy file: save it with numpy.save, without objects.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise TurboError(f"{name} holds no numbers: save an array of them with numpy.save.")
    if array.ndim < 1 or not len(array):
        raise TurboError(f"{name} is empty: save one row for each frame.")
    values = np.array(array[:MAX_FRAMES], dtype=np.float64)
    if not np.isfinite(values).all():
        raise TurboError(f"{name} holds numbers that are not finite (NaN or infinity): export the camera again.")
    return values


def _inside(root: Path, path: Path, what: str) -> Path:
    try:
        resolved = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # absent, a loop of links, a zero byte in the name
        raise TurboError(f"{what} is not there: it must be under ComfyUI's input directory.") from error
    if not resolved.is_relative_to(root.resolve()):
        raise TurboError(f"{what} leads out of ComfyUI's input directory: copy the files into it.")
    return resolved


def _check_poses(poses: np.ndarray) -> None:
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise TurboError(f"{POSES} has the shape {list(poses.shape)}: it must be [frames, 4, 4], camera to world.")
    rotation = poses[:, :3, :3]
    error = np.abs(rotation.transpose(0, 2, 1) @ rotation - np.eye(3)).max(axis=(1, 2))
    bad = (error > ROTATION_TOLERANCE) | (np.linalg.det(rotation) < 0) | (poses[:, 3] != (0, 0, 0, 1)).any(axis=1)
    if bad.any():
        raise TurboError(
            f"Pose {int(bad.argmax())} in {POSES} is no camera pose: its upper left 3x3 part must be a rotation and "
            "its last row 0, 0, 0, 1."
        )
    if np.abs(poses[:, :3, 3]).max() > FARTHEST:
        raise TurboError(
            f"{POSES} has a camera more than {FARTHEST:g} units away from the origin: export the camera again."
        )


def _first_intrinsics(intrinsics: np.ndarray) -> tuple[float, float, float, float]:
    first = intrinsics if intrinsics.ndim == 1 else intrinsics[0]
    if intrinsics.ndim > 2 or first.shape != (4,):
        raise TurboError(
            f"{INTRINSICS} has the shape {list(intrinsics.shape)}: it must be [frames, 4] with fx, fy, cx, cy."
        )
    # Focal lengths below a pixel are intrinsics as shares of the picture's size.
    if min(first[:2]) < 1 or np.abs(first).max() > LARGEST:
        raise TurboError(
            f"{INTRINSICS} has fx, fy, cx, cy of {', '.join(f'{value:g}' for value in first)}: they must be pixels "
            "at 832x480, the "
            f"first two 1 to {LARGEST:g}."
        )
    fx, fy, cx, cy = map(float, first)
    return fx, fy, cx, cy


def _check_keys(keys: np.ndarray) -> None:
    if keys.ndim != 2 or keys.shape[1] != 4:
        raise TurboError(f"{ACTION} has the shape {list(keys.shape)}: it must be [frames, 4] with w, a, s, d.")
    if not np.isin(keys, (0, 1)).all():
        raise TurboError(f"{ACTION} must hold 0 and 1 only: whether w, a, s and d are held in each frame.")

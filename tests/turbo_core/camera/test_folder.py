"""Recorded cameras: what is read, and what is refused."""

import os

import numpy as np
import pytest
from td_pack.tests.support import hostile
from td_pack.turbo_core.camera.folder import camera_files, path_from_folder
from td_pack.turbo_core.camera.path import LINGBOT_INTRINSICS
from td_pack.turbo_core.camera.pose import relative_poses
from td_pack.turbo_core.camera.presets import path_from_preset
from td_pack.turbo_core.errors import TurboError

POSES = path_from_preset("orbit_right", 1.0, "smooth", 13).poses
INTRINSICS = np.tile(np.array([415.5, 415.5, 416.0, 240.0]), (13, 1))
ACTION = np.eye(4, dtype=np.int64)[np.arange(13) % 4]
ALL = {"poses": POSES.astype(np.float32), "intrinsics": INTRINSICS, "action": ACTION}


@pytest.fixture
def root(tmp_path):
    """An input directory with a file beside it that nobody may read."""
    (tmp_path / "input").mkdir()
    (tmp_path / "outside").mkdir()
    np.save(tmp_path / "outside" / "poses.npy", POSES)
    return tmp_path / "input"


def put(root, name: str = "walk", **arrays) -> str:
    (root / name).mkdir(parents=True, exist_ok=True)
    for file, array in arrays.items():
        np.save(root / name / f"{file}.npy", array)
    return name


def test_a_folder_gives_its_poses_first_intrinsics_and_keys(root):
    other_rows = INTRINSICS.copy()
    other_rows[1:] = 999.0
    path = path_from_folder(root, put(root, **ALL | {"intrinsics": other_rows}), "opencv")
    assert path.frames == 13 and np.allclose(path.poses, POSES, atol=1e-6)
    assert path.intrinsics == (415.5, 415.5, 416.0, 240.0)
    assert np.array_equal(path.keys, ACTION)
    assert camera_files(root / "walk") == [root / "walk" / f"{name}.npy" for name in ("poses", "intrinsics", "action")]


def test_poses_alone_are_enough(root):
    path = path_from_folder(root, put(root, "a/b", poses=POSES), "opencv")
    assert path.intrinsics == LINGBOT_INTRINSICS and path.keys is None


def test_opengl_poses_are_turned_into_opencv_s(root):
    opengl = POSES @ np.diag([1.0, -1, -1, 1])
    path = path_from_folder(root, put(root, poses=opengl), "opengl")
    assert np.allclose(relative_poses(path), relative_poses(path_from_folder(root, put(root, poses=POSES), "opencv")))


@pytest.mark.parametrize(
    "poses,keys,max_length,frames", [(12, 12, 0, 9), (13, 8, 0, 5), (13, 13, 7, 5), (1, 13, 0, 1), (13, 13, 99, 13)]
)
def test_the_shortest_counts_and_length_is_4n_plus_1(root, poses, keys, max_length, frames):
    name = put(root, poses=POSES[:poses], action=ACTION[:keys])
    path = path_from_folder(root, name, "opencv", max_length)
    assert path.frames == len(path.poses) == len(path.keys) == frames


def bent(index, value) -> np.ndarray:
    poses = POSES.copy()
    poses[index] = value
    return poses


WRONG = [
    ({}, "poses.npy is not in the folder 'walk'"),
    ({"poses": POSES[:, :3]}, r"poses.npy has the shape \[13, 3, 4\]: it must be \[frames, 4, 4\]"),
    ({"poses": POSES[:0]}, "poses.npy is empty"),
    ({"poses": np.float64(1)}, "poses.npy is empty"),
    ({"poses": bent((5, 0, 3), np.nan)}, "poses.npy holds numbers that are not finite"),
    ({"poses": bent((5, 0, 0), 3.0)}, "Pose 5 in poses.npy is no camera pose"),
    ({"poses": bent((2, slice(0, 3), 0), -POSES[2, :3, 0])}, "Pose 2 in poses.npy is no camera pose"),  # mirrored
    ({"poses": bent((7, 3), 0.0)}, "Pose 7 in poses.npy is no camera pose"),
    ({"poses": POSES.astype(str)}, "poses.npy holds no numbers"),
    ({"poses": POSES.astype(complex)}, "poses.npy holds no numbers"),
    (ALL | {"intrinsics": np.eye(3)}, r"intrinsics.npy has the shape \[3, 3\]"),
    (ALL | {"intrinsics": np.zeros((13, 4))}, "intrinsics.npy has fx, fy, cx, cy of 0, 0, 0, 0"),
    (ALL | {"intrinsics": np.array([0.6, 1.05, 0.5, 0.5])}, "of 0.6, 1.05, 0.5, 0.5: they must be pixels at 832x480"),
    (ALL | {"intrinsics": np.array([503, 503, 1e300, 240])}, "of 503, 503, 1e.300, 240: they must be pixels"),
    ({"poses": bent((5, 0, 3), 1e200)}, "a camera more than 1e.12 units away"),
    (ALL | {"action": ACTION[:, :3]}, r"action.npy has the shape \[13, 3\]"),
    (ALL | {"action": ACTION * 2}, "action.npy must hold 0 and 1 only"),
]


@pytest.mark.parametrize("arrays,message", WRONG)
def test_files_that_are_something_else_are_refused(root, arrays, message):
    with pytest.raises(TurboError, match=message):
        path_from_folder(root, put(root, **arrays), "opencv")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_nothing_in_a_file_is_executed(root, monkeypatch):
    monkeypatch.chdir(root)
    name = put(root)
    np.save(root / name / "poses.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(TurboError, match="poses.npy is not a plain numpy file"):
        path_from_folder(root, name, "opencv")
    assert not (root / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04",
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999, 4, 4), }".ljust(117)
        + b"\n",
    ],
)
def test_cut_files_and_headers_that_lie_are_refused(root, content):
    name = put(root)
    (root / name / "poses.npy").write_bytes(content)
    with pytest.raises(TurboError, match="poses.npy (is not a plain numpy file|holds no numbers)"):
        path_from_folder(root, name, "opencv")


def test_a_pipe_is_not_waited_for(root):
    hostile.fifo(root / put(root) / "poses.npy")
    with hostile.limits(), pytest.raises(TurboError, match="poses.npy is not a file"):
        path_from_folder(root, "walk", "opencv")


@pytest.mark.parametrize(
    "folder", ["../outside", "walk/../../outside", "link", "", "  ", "absent", "walk/poses.npy", "\0"]
)
def test_only_the_input_directory_is_read(root, folder):
    put(root, poses=POSES)
    (root / "link").symlink_to(root.parent / "outside")
    with pytest.raises(TurboError, match="folder"):
        path_from_folder(root, folder, "opencv")


def test_an_absolute_folder_and_a_linked_file_are_refused(root):
    with pytest.raises(TurboError, match="leads out of ComfyUI's input directory"):
        path_from_folder(root, str(root.parent / "outside"), "opencv")
    name = put(root)
    (root / name / "poses.npy").symlink_to(root.parent / "outside" / "poses.npy")
    with pytest.raises(TurboError, match="poses.npy leads out of ComfyUI's input directory"):
        path_from_folder(root, name, "opencv")

"""What LingBot's network sees of a path: one pose for each latent frame, relative to the one before."""

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from .path import CameraPath


def latent_poses(path: CameraPath) -> np.ndarray:
    """[latent frames, 4, 4] float64: the path at evenly spread times, its ends included.

    Between frames positions are interpolated linearly and rotations spherically. With one pose per frame that is every
    fourth pose."""
    positions = np.linspace(0, len(path.poses) - 1, path.latent_frames)
    if len(path.poses) == 1:
        return path.poses.copy()
    before = np.minimum(positions.astype(int), len(path.poses) - 2)
    share = (positions - before)[:, None]
    place = path.poses[:, :3, 3]
    poses = np.tile(np.eye(4), (path.latent_frames, 1, 1))
    poses[:, :3, 3] = place[before] + share * (place[before + 1] - place[before])
    times = np.arange(len(path.poses))
    poses[:, :3, :3] = Slerp(times, Rotation.from_matrix(path.poses[:, :3, :3]))(positions).as_matrix()
    return poses


def relative_poses(path: CameraPath) -> np.ndarray:
    """[latent frames, 4, 4] float64: the identity, then each latent frame's pose in the axes of the one before.

    The longest translation becomes 1 (times the path's `speed`): the network knows relative speeds within a clip
    only."""
    poses = latent_poses(path)
    relative = np.tile(np.eye(4), (len(poses), 1, 1))
    inverse = poses[:-1, :3, :3].transpose(0, 2, 1)
    relative[1:, :3, :3] = inverse @ poses[1:, :3, :3]
    moves = (inverse @ np.diff(poses[:, :3, 3], axis=0)[..., None])[..., 0]
    longest = np.linalg.norm(moves, axis=1).max(initial=0.0)
    relative[1:, :3, 3] = moves / longest * path.speed if longest > 0 else moves
    # In steady motion all poses are equal except for rounding errors; without these the model computes them once.
    return relative.round(9) + 0.0

"""The camera embedding against upstream's (golden files) and against closed forms."""

import dataclasses

import numpy as np
import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.models import relative_error
from td_pack.turbo_core.camera.embed import CHANNELS, embed
from td_pack.turbo_core.camera.path import CameraPath
from td_pack.turbo_core.camera.pose import relative_poses
from td_pack.turbo_core.camera.presets import path_from_preset
from td_pack.turbo_core.errors import TurboError


def golden_path(tensors: dict[str, torch.Tensor]) -> CameraPath:
    poses = tensors["poses"].double().numpy()
    keys = tensors["action"].numpy().astype(bool) if "action" in tensors else None
    return CameraPath(poses, len(poses), tuple(tensors["intrinsics"][0].tolist()), keys=keys)


@pytest.mark.parametrize("name", ["lingbot_cam", "lingbot_act"])
def test_upstream_s_embedding(name):
    case, tensors = checkpoints.golden_case(name)
    path = golden_path(tensors)
    expected = tensors["camera_embedding"]
    assert np.abs(relative_poses(path) - tensors["relative_poses"].numpy()).max() <= 1e-6
    actual = embed(path, expected.shape[4] * 8, expected.shape[3] * 8, case["control"])
    assert actual.dtype == torch.float32 and actual.shape == expected.shape
    assert relative_error(actual, expected) <= 1e-6


def still(frames: int = 5, **more) -> CameraPath:
    return CameraPath(np.tile(np.eye(4), (frames, 1, 1)), frames, **more)


def unpacked(embedding: torch.Tensor) -> torch.Tensor:
    """[latent frames, height, width, numbers]"""
    return torch.nn.functional.pixel_shuffle(embedding[0].transpose(0, 1), 8).permute(0, 2, 3, 1)


def test_a_static_camera_looks_through_pixel_centers():
    rays = unpacked(embed(still(), 832, 480, "cam"))
    assert rays.shape == (2, 480, 832, 6)
    assert not rays[..., :3].any()
    x, y = (7 + 0.5 - 416) / 502.9, (100 + 0.5 - 240) / 502.9
    expected = torch.tensor([x, y, 1.0]) / (x * x + y * y + 1) ** 0.5
    assert torch.allclose(rays[0, 100, 7, 3:], expected, atol=1e-7)
    assert torch.allclose(rays[..., 3:].norm(dim=-1), torch.ones(2, 480, 832))


def test_intrinsics_follow_each_axis_and_fov_keeps_pixels_square():
    scaled = still().intrinsics_at(480, 832)[0]
    assert np.allclose(scaled, [502.9 * 480 / 832, 502.9 * 832 / 480, 240, 416])
    square = still(fov=90.0).intrinsics_at(480, 832)[0]
    assert np.allclose(square, [240, 240, 240, 416])


def test_a_steady_turn_is_the_same_rotation_in_every_frame():
    path = path_from_preset("pan_right", 1.0, "linear", 9)
    step = np.radians(60) / 2
    poses = relative_poses(path)
    assert np.allclose(poses[1:, :3, 2], [np.sin(step), 0, np.cos(step)], atol=1e-9)
    embedding = embed(path, 64, 48, "cam")
    assert torch.equal(embedding[:, :, 1], embedding[:, :, 2])
    assert not embedding[:, :192].any()  # turning on the spot moves nothing


def test_world_frame_and_scale_do_not_matter():
    _, tensors = checkpoints.golden_case("lingbot_cam")
    path = golden_path(tensors)
    world = path_from_preset("orbit_left", 1.3, "smooth", 9).poses[7]
    moved = world @ path.poses
    moved[:, :3, 3] *= 17.0
    assert np.allclose(relative_poses(dataclasses.replace(path, poses=moved)), relative_poses(path), atol=1e-5)


def test_the_longest_move_is_one_and_the_speed_scales_it():
    path = path_from_preset("forward", 1.0, "smooth", 33)
    moves = np.linalg.norm(relative_poses(path)[:, :3, 3], axis=1)
    assert moves[0] == 0 and moves.max() == pytest.approx(1.0) and moves[1] < 0.3
    slow = path_from_preset("forward", 0.25, "smooth", 33)
    assert np.allclose(relative_poses(slow)[:, 2, 3], moves * 0.25)


def test_act_holds_directions_and_the_keys_of_every_fourth_frame():
    keys = np.zeros((9, 4), dtype=bool)
    keys[3, 0] = keys[4, 1] = keys[8, 3] = True  # the first lies between latent frames
    pixels = unpacked(embed(still(9, keys=keys), 32, 16, "act"))
    assert torch.equal(pixels[:, 5, 9, 3:], torch.tensor([[0.0] * 4, [0, 1, 0, 0], [0, 0, 0, 1]]))
    assert torch.equal(pixels[..., :3], unpacked(embed(still(9), 32, 16, "cam"))[..., 3:])


def test_a_dolly_zoom_keeps_what_is_one_unit_ahead_in_size():
    path = path_from_preset("dolly_zoom", 1.0, "smooth", 9)
    focal = path.intrinsics_at(832, 480)[:, 0]
    distance = 1 - path.poses[::4, 2, 3]
    assert np.allclose(focal / distance, focal[0])
    assert focal[-1] == pytest.approx(502.9 / 2)


@pytest.mark.parametrize("size", [(840, 480), (832, 8), (0, 480)])
def test_sizes_off_the_grid_are_refused(size):
    with pytest.raises(TurboError, match="multiples of 16"):
        embed(still(), *size, "cam")


def test_keys_are_needed_by_act_only():
    with pytest.raises(TurboError, match="driven by keys and this camera has none"):
        embed(still(), 32, 16, "act")
    assert embed(still(), 32, 16, "cam").shape[1] == CHANNELS["cam"] == 384
    assert CHANNELS["act"] == 448


def test_one_frame_is_a_path():
    assert embed(still(1), 32, 16, "cam").shape == (1, 384, 1, 2, 4)

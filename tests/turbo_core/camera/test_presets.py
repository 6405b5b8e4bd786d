"""Ready-made moves: where they end, how they get there, and the picture of a path."""

import dataclasses

import numpy as np
import pytest
from td_pack.turbo_core.camera.actions import path_from_actions
from td_pack.turbo_core.camera.path import CameraPath, check_fov
from td_pack.turbo_core.camera.presets import PRESETS, path_from_preset
from td_pack.turbo_core.camera.view import SIZE, _grid_step, top_view
from td_pack.turbo_core.errors import TurboError

HALF = np.sqrt(3) / 2
# preset: (where it ends, where it then looks), x right, y down, z forward
ENDS = {
    "forward": ((0, 0, 1), (0, 0, 1)),
    "back": ((0, 0, -1), (0, 0, 1)),
    "orbit_left": ((-HALF, 0, 0.5), (HALF, 0, 0.5)),
    "orbit_right": ((HALF, 0, 0.5), (-HALF, 0, 0.5)),
    "pan_left": ((0, 0, 0), (-HALF, 0, 0.5)),
    "pan_right": ((0, 0, 0), (HALF, 0, 0.5)),
    "tilt_up": ((0, 0, 0), (0, -0.5, HALF)),
    "tilt_down": ((0, 0, 0), (0, 0.5, HALF)),
    "dolly_zoom": ((0, 0, 0.5), (0, 0, 1)),
    "static": ((0, 0, 0), (0, 0, 1)),
}


@pytest.mark.parametrize("ease", ["linear", "smooth"])
@pytest.mark.parametrize("preset", PRESETS)
def test_where_a_move_ends(preset, ease):
    path = path_from_preset(preset, 1.0, ease, 81)
    assert np.array_equal(path.poses[0], np.eye(4))
    place, look = ENDS[preset]
    assert np.allclose(path.poses[-1, :3, 3], place) and np.allclose(path.poses[-1, :3, 2], look)
    rotation = path.poses[:, :3, :3]
    assert np.allclose(rotation.transpose(0, 2, 1) @ rotation, np.eye(3))


@pytest.mark.parametrize("preset", ["orbit_left", "orbit_right"])
def test_an_orbit_keeps_its_distance_and_its_aim(preset):
    path = path_from_preset(preset, 3.0, "linear", 41)
    to_center = np.array([0, 0, 1]) - path.poses[:, :3, 3]
    assert np.allclose(np.linalg.norm(to_center, axis=1), 1)
    assert np.allclose(to_center, path.poses[:, :3, 2])


def test_smooth_starts_and_stops_gently_and_linear_is_even():
    smooth, linear = (
        np.diff(path_from_preset("forward", 1.0, ease, 81).poses[:, 2, 3]) for ease in ("smooth", "linear")
    )
    assert np.allclose(linear, 1 / 80)
    assert smooth[0] < 0.1 * smooth.max() and smooth[-1] < 0.1 * smooth.max()
    assert np.argmax(smooth) in (39, 40)


def test_no_amount_is_standing_still():
    for preset in PRESETS:
        path = path_from_preset(preset, 0.0, "linear", 9)
        assert np.allclose(path.poses, np.eye(4)) or path.speed == 0
        assert not path.keys.any()


@pytest.mark.parametrize("length", [0, -3, 80, 4005])
def test_lengths_that_no_video_has_are_refused(length):
    with pytest.raises(TurboError, match="frames"):
        path_from_preset("forward", 1.0, "linear", length)


@pytest.mark.parametrize("amount", [-1.0, float("nan"), float("inf")])
def test_amounts_that_mean_nothing_are_refused(amount):
    with pytest.raises(TurboError, match="amount is"):
        path_from_preset("forward", amount, "linear", 9)


@pytest.mark.parametrize("fov", [0.5, -10.0, 171.0, float("nan")])
def test_an_impossible_field_of_view_is_refused(fov):
    with pytest.raises(TurboError, match="choose 1 to 170 degrees"):
        check_fov(fov)
    check_fov(0.0)


def scaled(path: CameraPath, factor: float) -> CameraPath:
    poses = path.poses.copy()
    poses[:, :3, 3] *= factor
    return dataclasses.replace(path, poses=poses)


PATHS = {
    "walk": lambda: path_from_actions("w-8,jd-12,none-5,iw-16"),
    "turn on the spot": lambda: path_from_actions("l-20"),
    "still": lambda: path_from_preset("static", 1.0, "linear", 9),
    "one frame": lambda: CameraPath(np.eye(4)[None], 1),
    "up": lambda: path_from_preset("tilt_up", 3.0, "linear", 9),  # looks straight up at the end
    "far": lambda: scaled(path_from_preset("orbit_left", 2.0, "linear", 961), 1e6),
    "tiny": lambda: scaled(path_from_preset("back", 1.0, "linear", 9), 1e-9),
    "rounding": lambda: scaled(path_from_preset("orbit_left", 1.0, "linear", 9), 1e-16),
    "less than a number squared": lambda: scaled(path_from_preset("back", 1.0, "linear", 9), 1e-320),
}


@pytest.mark.parametrize("name", PATHS)
def test_every_path_has_a_picture(name):
    picture = np.asarray(top_view(PATHS[name]()))
    assert picture.shape == (SIZE[1], SIZE[0], 3)
    assert (picture != picture[0, 0]).any(axis=-1).mean() > 0.5


def test_a_path_of_any_size_has_the_same_picture():
    """A grid in the wrong unit is millions of lines, which take minutes."""
    one, tiny = (np.asarray(top_view(scaled(path_from_preset("orbit_left", 1.0, "linear", 9), f))) for f in (1, 1e-16))
    assert (one[60:450] != tiny[60:450]).any(axis=-1).mean() < 0.01  # lines at rounded pixels


def test_a_grid_of_round_numbers():
    assert [_grid_step(6 * sixth) for sixth in (1, 1.5, 4, 7)] == [1, 2, 5, 10]


def test_the_captions_of_the_picture():
    """ "from above" ends at the plot's right edge, and "does not move" is below the camera in the plot's middle."""
    picture = np.asarray(top_view(PATHS["still"]())).astype(int)
    contrast = np.abs(picture - picture[0, 0]).sum(axis=-1)
    caption, plot = (contrast[14:44] > 60).nonzero()[1].max(), (contrast[100] > 5).nonzero()[0].max()
    assert plot - 2 < caption < plot
    white = (picture[60:450].min(axis=-1) > 200).nonzero()[0] + 60
    assert 255 + 20 < white.max() < 255 + 40


def test_the_picture_shows_where_the_path_goes():
    """A camera that goes right draws its last color, orange, right of its first, blue."""
    poses = np.tile(np.eye(4), (9, 1, 1))
    poses[:, 0, 3] = np.arange(9)
    plot = np.asarray(top_view(CameraPath(poses, 9)))[60:450].astype(int)
    red, blue = plot[..., 0], plot[..., 2]
    orange, sky = ((difference > 120).nonzero()[1] for difference in (red - blue, blue - red))
    assert sky.mean() < SIZE[0] / 2 < orange.mean()

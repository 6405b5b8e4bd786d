"""Key strings: what they say, and where the camera goes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.camera.actions import KEYS, MOVE, parse_actions, path_from_actions, walk
from td_pack.turbo_core.camera.pose import relative_poses
from td_pack.turbo_core.errors import TurboError

STRINGS, TENSORS = checkpoints.golden_case("lingbot_actions")


@pytest.mark.parametrize("case", STRINGS)
def test_upstream_s_keys_and_poses(case):
    keys = parse_actions(STRINGS[case])
    golden = {name: TENSORS[f"{case}.{name}"].numpy() for name in ("wasd", "ijkl", "poses", "relative_poses")}
    assert np.array_equal(keys, np.concatenate([golden["wasd"], golden["ijkl"]], axis=1))
    path = path_from_actions(STRINGS[case])
    assert path.frames == len(golden["wasd"])
    assert np.array_equal(path.keys, golden["wasd"])
    assert np.abs(path.poses - golden["poses"]).max() <= 1e-6
    assert np.abs(relative_poses(path) - golden["relative_poses"]).max() <= 1e-6


@given(st.lists(st.tuples(st.sets(st.sampled_from(KEYS)), st.integers(1, 9)), min_size=1, max_size=6))
def test_a_string_says_what_it_was_made_of(segments):
    text = ", ".join(f"{''.join(sorted(keys)).upper() or 'none'}-{count}" for keys, count in segments)
    rows = parse_actions(text)
    assert len(rows) == sum(count for _, count in segments)
    position = 0
    for keys, count in segments:
        assert (rows[position : position + count] == [key in keys for key in KEYS]).all()
        position += count


@pytest.mark.parametrize("text", ["w-10\uff0ciw-15", " W - 10 , iw-1 5", "w-10,wi-15"])
def test_spaces_case_and_commas_as_upstream(text):
    assert np.array_equal(parse_actions(text), parse_actions("w-10,iw-15"))


@pytest.mark.parametrize(
    "text",
    ["", "  ", "w", "w-", "-5", "w-0", "w--3", "x-4", "w-4,,a-4", "w-4,", "w-1.5", "w-\u0663", "none", "nonew-4"],
)
def test_a_wrong_string_is_named(text):
    with pytest.raises(TurboError, match="actions (is empty|has )"):
        parse_actions(text)


def test_a_string_beyond_all_videos_is_refused_before_it_costs_memory():
    with pytest.raises(TurboError, match="longer than 4001 frames"):
        parse_actions("w-999999999999999999")
    with pytest.raises(TurboError, match="longer than 4001 frames"):
        parse_actions("w-" + "9" * 5000)  # Python reads no such number
    assert len(parse_actions("w-" + "0" * 5000 + "7")) == 7


def test_a_long_wrong_string_is_named_by_its_beginning():
    with pytest.raises(TurboError, match=r"actions has 'q{40}\.\.\.'"):
        parse_actions("q" * 5000)


@pytest.mark.parametrize(
    "text,max_length,frames", [("w-40", 0, 41), ("w-41", 0, 41), ("w-1", 0, 1), ("w-90", 81, 81), ("w-90", 83, 81)]
)
def test_length_is_4n_plus_1(text, max_length, frames):
    path = path_from_actions(text, max_length)
    assert path.frames == frames and len(path.poses) == frames + 1


def test_moves_stay_on_the_ground_and_pitch_stops_at_85_degrees():
    poses = walk(parse_actions("i-60,w-10"))
    forward = poses[-1, :3, 2]
    assert np.degrees(np.arcsin(-forward[1])) == pytest.approx(84.0)  # 42 steps of 2 degrees
    assert np.allclose(poses[-1, :3, 3], [0, 0, 10 * MOVE], atol=1e-5)


def test_turning_and_strafing_directions():
    left = walk(parse_actions("j-45"))[-1]
    assert np.allclose(left[:3, 2], [-1, 0, 0], atol=1e-9)  # 90 degrees to the left
    assert np.allclose(walk(parse_actions("d-2"))[-1, :3, 3], [2 * MOVE, 0, 0], atol=1e-6)
    assert np.allclose(walk(parse_actions("ws-3,ad-3"))[-1], np.eye(4))

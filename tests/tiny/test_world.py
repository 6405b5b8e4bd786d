"""`vision` reads from rendered clips what `world` was asked to render."""

import dataclasses

import pytest
import torch
from td_pack.tests.tiny import vision, world
from td_pack.tests.tiny.nodes import toy_text

SEEDS = range(24)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_clip_shows_what_its_prompt_says(seed):
    scene = world.scene(seed)
    score = vision.score(world.render(scene), scene)
    assert dataclasses.astuple(score) == (True,) * 5


@pytest.mark.parametrize("background", world.BACKGROUNDS)
def test_shapes_that_touch_are_two(background):
    scene = world.parse(f"a green square and a orange triangle moving down fast over a {background} background")
    shapes = [dataclasses.replace(s, center=(x, 64.0)) for s, x in zip(scene.shapes, (40.0, 83.0), strict=True)]
    scene = dataclasses.replace(scene, shapes=tuple(shapes))
    assert dataclasses.astuple(vision.score(world.render(scene), scene)) == (True,) * 5


def test_a_clip_is_a_function_of_its_seed():
    assert torch.equal(world.render(world.scene(5)), world.render(world.scene(5)))
    assert len({world.scene(seed).prompt for seed in SEEDS}) > 20


@pytest.mark.parametrize(
    "part, change",
    [
        ("color", lambda s: dataclasses.replace(s, shapes=(dataclasses.replace(s.shapes[0], color="green"),))),
        ("kind", lambda s: dataclasses.replace(s, shapes=(dataclasses.replace(s.shapes[0], kind="triangle"),))),
        ("direction", lambda s: dataclasses.replace(s, direction="left")),
        ("speed", lambda s: dataclasses.replace(s, speed="fast")),
        ("background", lambda s: dataclasses.replace(s, background="light")),
    ],
)
def test_a_clip_of_something_else_is_seen_to_be_wrong(part, change):
    said = world.parse("a red disc moving right slowly over a dark background")
    score = dataclasses.asdict(vision.score(world.render(change(said)), said))
    assert [name for name, right in score.items() if not right] == [part]


def test_a_window_is_part_of_the_clip():
    scene = world.scene(3)
    whole = world.render(scene)
    part = world.render(scene, 32, 5, origin=(40, 24), first=10)
    assert torch.allclose(
        part, whole[10:15, 24:56, 40:72], atol=1e-4
    )  # coordinates are sums of float32 in another order


def test_a_prompt_reads_back_as_its_scene():
    for seed in SEEDS:
        assert world.parse(world.scene(seed).prompt) == world.draw_words(seed)


def test_the_stand_in_encoder_knows_the_words_of_the_world():
    assert toy_text.GROUPS == {
        "color": tuple(world.COLORS),
        "kind": world.KINDS,
        "direction": tuple(world.DIRECTIONS),
        "speed": tuple(world.SPEEDS),
        "background": tuple(world.BACKGROUNDS),
    }
    for seed in SEEDS:
        assert toy_text.encode(world.scene(seed).prompt)[1] == []


def test_the_stand_in_encoder_tells_what_it_made_of_a_prompt():
    embedding, notes = toy_text.encode("A blue circle and a shiny elephant moving up over a light background")
    assert notes == ["The toy world does not know elephant, shiny.", "The prompt names no speed: slowly."]
    same = toy_text.encode("a blue disc moving up slowly over a light background")[0]
    assert embedding.shape == (1, 8, 4096)
    assert {tuple(row[:4].tolist()) for row in embedding[0]} == {tuple(row[:4].tolist()) for row in same[0]}


def test_a_color_belongs_to_its_shape():
    one, two = (
        toy_text.encode(f"{text} moving up fast over a dark background")[0]
        for text in ("a red disc and a blue square", "a blue disc and a red square")
    )
    assert not torch.equal(one.sum(1), two.sum(1))

"""What the toy models do beyond one clip, on few clips: docs/benchmarks/tiny.md has the measures of many."""

import folder_paths
import pytest
import torch
from td_pack.tests.tiny import measure, models, tasks, vision, world


@pytest.fixture(scope="module")
def vae():
    return models.load_vae()


@pytest.fixture(scope="module")
def experts():
    return [models.load(models.WEIGHTS / name, dtype="fp32") for name in (models.I2V_HIGH, models.I2V_LOW)]


def of_one_shape(count: int, color: str = "") -> list[world.Scene]:
    found = [scene for scene in measure.scenes(400) if len(scene.shapes) == 1]
    return [scene for scene in found if color in ("", scene.shapes[0].color)][:count]


def test_color_and_direction_persist_over_three_segments(experts, vae, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    wanted = tasks.crossing(measure.scenes(100), 2)
    parts = tasks.segments(*experts, vae, wanted, measure.SEED)
    assert tasks.persist(parts, wanted) == [True, True]
    for clips in zip(*parts, strict=True):  # a segment goes on where the one before ends
        for one, following in zip(clips, clips[1:], strict=False):
            assert vision.psnr(one[-1], following[tasks.OVERLAP - 1]) >= 20


def test_a_last_frame_that_prompt_and_first_frame_do_not_tell_is_shown(experts, vae):
    straight = of_one_shape(2)
    wanted = [world.elsewhere(scene, measure.SEED + i) for i, scene in enumerate(straight)]
    clips = tasks.first_and_last(*experts, vae, wanted, measure.SEED, last=True)
    for clip, scene, told in zip(clips, wanted, straight, strict=True):
        first, *_, last = world.render(scene)
        assert vision.psnr(world.render(told)[-1], last) < 20  # where the clip would end without its last frame
        assert vision.psnr(clip[-1], last) >= 24 and vision.psnr(clip[0], first) >= 25  # 26.6 and 35 measured
        assert vision.score(clip, scene).all


def test_a_fine_tune_made_turbo_by_delta_keeps_its_color(vae, tmp_path):
    *_, made = tasks.by_delta(models.WEIGHTS, tmp_path)
    palette = world.COLORS | {"turquoise": world.TURQUOISE}
    wanted = of_one_shape(3, "red") + of_one_shape(3, "blue")
    high = models.load(made, 2, dtype="fp32")
    assert high.model.spec.turbo and high.model.spec.sla
    clips = models.decode(vae, models.sample(high, wanted, measure.SEED, steps=1))
    assert high.model.calls["sparse attention"] == 6 and high.model.calls["dense attention"] == 0
    seen = [measure.shows(c, s, "turquoise", palette) for c, s in zip(clips, wanted, strict=True)]
    assert seen == [True] * 3 + [False] * 3
    scores = [vision.score(clip, scene, palette) for clip, scene in zip(clips, wanted, strict=True)]
    assert all(score.color for score in scores[3:]) and all(score.direction for score in scores)
    assert torch.isfinite(clips).all()

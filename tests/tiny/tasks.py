"""What the toy models do beyond a clip from a prompt or a picture: end in a given last frame, go on for several
segments, and carry their few steps and sparse attention over to another model by a delta."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import torch
from comfy_api.latest import InputImpl, Types

from ...nodes.join import TurboDiffusionJoinVideo
from ...turbo_core.convert.convert import Request, convert
from . import models, vision, world

OVERLAP = 5  # frames that two segments share, as in the long-video template


def first_and_last(high, low, vae, scenes: list[world.Scene], seed: int, last: bool) -> torch.Tensor:
    """Clips from the prompt and the first frame of each scene, and from its last frame too or not."""
    whole = torch.stack([world.render(scene) for scene in scenes])
    end = whole[:, -1:] if last else None
    latents = models.sample(high, scenes, seed, mode="ode", low=low, vae=vae, start=whole[:, :1], end=end)
    return models.decode(vae, latents)


def crossing(scenes: list[world.Scene], count: int) -> list[world.Scene]:
    """`count` scenes of one shape that moves slowly from where it is just inside the picture, so that three segments
    lead it to the other side."""
    result = []
    for scene in scenes:
        if len(scene.shapes) == 1 and scene.speed == "slowly" and len(result) < count:
            (x, y), (dx, dy) = scene.shapes[0].center, world.DIRECTIONS[scene.direction]
            away = world.SIZE / 2 - world.SPEEDS["slowly"] / 2 - world.RADIUS
            middle = world.SIZE / 2
            center = (middle - away * dx if dx else x, middle - away * dy if dy else y)
            result.append(replace(scene, shapes=(replace(scene.shapes[0], center=center),)))
    return result


def segments(high, low, vae, scenes: list[world.Scene], seed: int, count: int = 3) -> list[torch.Tensor]:
    """The clips of each segment, chained as the long-video template does it: the last frames that TurboDiffusion Join
    Video hands out are the start_image of the next segment, which has a seed of its own."""
    start = torch.stack([world.render(scene, frames=1) for scene in scenes])
    joined: list = [None] * len(scenes)
    result = []
    for k in range(count):
        latents = models.sample(high, scenes, seed + 100 * k, mode="ode", low=low, vae=vae, start=start)
        clips = models.decode(vae, latents)
        result.append(clips)
        ends = []
        for i, clip in enumerate(clips):
            video = InputImpl.VideoFromComponents(Types.VideoComponents(images=clip, frame_rate=Fraction(world.FPS)))
            joined[i], end = TurboDiffusionJoinVideo.execute(video, OVERLAP, joined[i]).args
            ends.append(end)
        start = torch.stack(ends)
    return result


def persist(parts: list[torch.Tensor], scenes: list[world.Scene]) -> list[bool]:
    """Of each scene, whether color and direction are right in every segment."""
    scores = [[vision.score(clip, scene) for clip, scene in zip(part, scenes, strict=True)] for part in parts]
    return [all(score.color and score.direction for score in of_scene) for of_scene in zip(*scores, strict=True)]


def by_delta(weights: Path, folder: Path) -> tuple[Path, Path, Path]:
    """The teacher of the toy T2V model, which runs dense, a fine-tune of it to which red is turquoise, and that
    fine-tune plus the difference between the T2V model and the teacher, all made by TurboDiffusion Convert."""
    sparse = weights / models.T2V
    stock = {k: v for k, v in torch.load(sparse, weights_only=True).items() if "proj_l" not in k}
    stock["patch_embedding.weight"] = stock["patch_embedding.weight"].unflatten(1, (-1, 1, 2, 2))
    models.write("stock.safetensors", stock, folder)
    teacher, fine_tune, made = (folder / f"{name}.safetensors" for name in ("teacher", "fine_tune", "by_delta"))
    convert(Request(folder / "stock.safetensors", teacher, overwrite=True, lora=weights / models.TEACHER))
    convert(Request(teacher, fine_tune, overwrite=True, lora=weights / models.FINE_TUNE))
    convert(Request(sparse, made, overwrite=True, base=fine_tune, teacher=teacher))
    return teacher, fine_tune, made

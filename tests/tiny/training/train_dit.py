"""The toy world's few-step DiTs: T2V, the I2V pair, T2V with sparse-linear attention, and a LoRA.

There is no teacher. A clip's content follows from its prompt, so a network that sees the schedule's own noise levels
can be trained on them directly, and its estimate of the clean clip is sharp at every level.

Where a token is is the hard part of T2V: Wan's rotary embedding is relative, so at the first level, where all is noise,
nothing tells it but the attention's reach ending at the clip's edges. T2V therefore trains in two stages. In the first,
the network learns nothing but that: every token is to say its place, which takes it two minutes and which it hardly
finds out on the way to clips. In the second, each prompt has one clip, its shapes in the middle of where they belong.
I2V needs none of this: the image decides."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ....turbo_core.sampling import schedule
from .. import world
from ..nodes import toy_text as text
from . import canvases, whole_dit
from .canvases import Canvases
from .loop import Stage, train


@dataclass(frozen=True)
class Recipe:
    """shares: how often a step trains on each noise level of the schedule; the rest of the batches see levels
    between."""

    stage: Stage
    batch: int
    rate: float
    shares: tuple[float, ...]
    sigma_max: float = 80.0
    image: bool = False
    levels: tuple[float, float] = (0.0, 1.0)  # the expert's part of the noise levels
    centered: bool = False  # shapes in the middle of where they belong, so that a prompt has one clip
    words: Callable[[torch.Generator], world.Scene] | None = None  # which clips; None: the world's


DIM, FFN = 128, 512
WHERE = Recipe(Stage("t2v_where", 300, average=0.98), 4, 3e-3, (1.0,))
T2V = Recipe(Stage("t2v", 5000), 8, 3e-3, (0.4, 0.25, 0.15, 0.15), centered=True)
HIGH = Recipe(Stage("i2v_high", 2700), 8, 3e-3, (0.45, 0.45, 0, 0), 200.0, True, (0.9, 1.0))
LOW = Recipe(Stage("i2v_low", 5000), 8, 3e-3, (0, 0, 0.45, 0.45), 200.0, True, (0.3, 0.9))
LAYERS, IMAGE_LAYERS = 6, 4


def run(recipe: Recipe, data: Canvases | None, folder: Path, weights: whole_dit.Weights | None = None):
    """Trains or resumes a dense model, from `weights` or from random ones; without data, on `whereabouts`. Returns its
    averaged weights, float32, in upstream's layout."""
    if weights is None:
        layers, channels = (IMAGE_LAYERS, 36) if recipe.image else (LAYERS, 16)
        weights = whole_dit.initial(DIM, FFN, layers, channels, seed=1)
    parameters = {name: torch.nn.Parameter(value) for name, value in weights.items()}

    def loss(step: int) -> torch.Tensor:
        x, image, t, prompt, sigma, clean = examples(recipe, data, step)
        given = x if image is None else torch.cat((x, image), 1)
        velocity = whole_dit.velocity(parameters, given, t, prompt)
        return (velocity - (x - clean) / sigma).square().mean()

    return train(recipe.stage, folder, parameters, optimizers(parameters, recipe.rate), loss)


def optimizers(parameters: dict[str, torch.nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, which learns faster from few steps, and Adam for everything else."""
    matrices = [
        p for name, p in parameters.items() if name.startswith("blocks.") and name.endswith("weight") and p.ndim == 2
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters.values() if id(p) not in chosen]
    result = [torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)] if others else []
    if matrices:
        result.append(torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
    return result


def examples(recipe: Recipe, data: Canvases, step: int):
    """A batch: noisy latents [B, 16, 9, 16, 16], for I2V mask and image [B, 20, ...], t [B], text [B, 8, 4096], noise
    levels [B, 1, 1, 1, 1] and the clean latents."""
    random = torch.Generator().manual_seed(step * 1000 + 17)
    rows = [example(recipe, data, random) for _ in range(recipe.batch)]
    x, image, sigma, prompt, clean = zip(*rows, strict=True)
    sigma = torch.tensor(sigma)
    t = (1000 * sigma).to(torch.bfloat16).float()
    return (
        torch.stack(x),
        torch.stack(image) if recipe.image else None,
        t,
        torch.cat(prompt),
        sigma.view(-1, 1, 1, 1, 1),
        torch.stack(clean),
    )


def example(recipe: Recipe, data: Canvases, random: torch.Generator):
    draw = recipe.words or any_words
    words = draw(random)
    index, sigma = noise_level(recipe, random)
    noise = torch.randn(16, canvases.FRAMES, canvases.CLIP, canvases.CLIP, generator=random)
    choose = middle if recipe.centered else any_place
    places = [choose(words, i, random) for i in range(len(words.shapes))]
    clean = whereabouts() if data is None else assemble(data, words, places)
    # A run starts from noise alone, scaled as ComfyUI does.
    x = sigma * noise if index == 0 else (1 - sigma) * clean + sigma * noise
    image = None
    if recipe.image:
        mask = torch.zeros(4, *noise.shape[1:])
        mask[:, 0] = 1
        image = torch.cat((mask, assemble(data, words, places, image=True)))
    return x, image, sigma, embedding(words.prompt), clean


def any_words(random: torch.Generator) -> world.Scene:
    return world.draw_words(int(torch.randint(1 << 30, (1,), generator=random)))


@functools.lru_cache(4096)
def embedding(prompt: str) -> torch.Tensor:
    return text.encode(prompt)[0].to(torch.bfloat16)


def noise_level(recipe: Recipe, random: torch.Generator) -> tuple[int | None, float]:
    """A level of the 4-step schedule and its index, or one in between."""
    draw = float(torch.rand(1, generator=random))
    levels = schedule.sigmas(4, recipe.sigma_max)
    for i, share in enumerate(recipe.shares):
        if draw < share:
            return i, levels[i]
        draw -= share
    low, high = (math.atan2(s, 1 - s) for s in recipe.levels)
    angle = low + (min(high, math.atan(recipe.sigma_max)) - low) * float(torch.rand(1, generator=random))
    return None, math.sin(angle) / (math.sin(angle) + math.cos(angle))


def any_place(words: world.Scene, i: int, random: torch.Generator) -> tuple[int, tuple[int, int]]:
    """(phase, window) of a shape."""
    shifts = canvases.shifts(words.speed, words.direction, lane(words, i))
    phase = int(torch.randint(canvases.PHASES, (1,), generator=random))
    return phase, shifts[int(torch.randint(len(shifts), (1,), generator=random))]


def middle(words: world.Scene, i: int, _: torch.Generator) -> tuple[int, tuple[int, int]]:
    return 0, canvases.middle(words.direction, lane(words, i))


def lane(words: world.Scene, i: int) -> int | None:
    return i if len(words.shapes) == 2 else None


@functools.cache
def whereabouts() -> torch.Tensor:
    """A latent [16, 9, 16, 16] that encodes positions: four waves each over time, rows and columns of tokens."""
    side = canvases.CLIP // 2
    result = torch.zeros(16, canvases.FRAMES, side, side)
    for axis, length in enumerate(result.shape[1:]):
        middle_of = (torch.arange(length) + 0.5) / length
        shape = [length if i == axis else 1 for i in range(3)]
        for wave in range(4):
            result[4 * axis + wave] = math.sqrt(2) * torch.cos(math.pi * (wave + 1) * middle_of).view(shape)
    return result.repeat_interleave(2, 2).repeat_interleave(2, 3)


def clip_key(words: world.Scene, i: int) -> tuple:
    shape = words.shapes[i]
    return shape.kind, shape.color, words.direction, words.speed, words.background


def half(words: world.Scene, i: int) -> tuple[slice, slice]:
    """Where shape `i` is alone: all of the picture, or the upper, lower, left or right half."""
    everything, middle = slice(None), canvases.CLIP // 2
    if len(words.shapes) == 1:
        return everything, everything
    part = slice(middle, None) if i else slice(middle)
    return (part, everything) if world.DIRECTIONS[words.direction][1] == 0 else (everything, part)


def assemble(data: Canvases, words: world.Scene, places: list, image: bool = False) -> torch.Tensor:
    """The latent of a clip, or of what WanImageToVideo makes of its first frame, float32 [16, 9, 16, 16]."""
    result = data.edges[words.background][image].float()
    for i, (phase, shift) in enumerate(places):
        if image:
            shape = words.shapes[i]
            canvas = data.images[shape.kind, shape.color, words.background][phase]
            shift = canvases.at_start(shift, words.speed, words.direction)
        else:
            canvas = data.clips[clip_key(words, i)][phase]
        y, x = half(words, i)
        result[:, :, y, x] += canvases.window(canvas, shift)[:, :, y, x].float()
    return result

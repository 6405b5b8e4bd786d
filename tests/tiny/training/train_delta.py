"""What a turbo model by delta needs beside the toy T2V model with sparse-linear attention: its teacher, which runs
dense, and a fine-tune of that teacher in which red is turquoise.

Both are small LoRAs, the teacher on the sparse model without its proj_l, the fine-tune on the teacher. Computed in
float32, which is faster than bfloat16 on processors without instructions for it."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import comfy.latent_formats
import torch

from .. import world
from . import canvases, train_dit, train_more, whole_dit, whole_vae
from .loop import Stage, train
from .train_dit import Recipe

TEACHER = Recipe(Stage("t2v_teacher", 100, warm_up=10, average=0.95), 8, 2e-3, (0.4, 0.25, 0.15, 0.15))
FINE_TUNE = Recipe(Stage("t2v_fine_tune", 120, warm_up=10, average=0.95), 8, 4e-3, (0.3, 0.25, 0.2, 0.2))
RANK = 8
LINEARS = tuple(f"{attention}.{name}" for attention in ("self_attn", "cross_attn") for name in "qkvo")
LINEARS += ("ffn.0", "ffn.2")
PROMPTS = 96
Example = tuple[torch.Tensor, torch.Tensor]  # text [1, 8, 4096], clean latent [16, 9, 16, 16]


def run_teacher(sparse: whole_dit.Weights, folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA with which the sparse model's weights run with dense attention, learned from the clips that it makes
    with sparse attention."""
    pool = clips_of(sparse, PROMPTS, train_more.KEY_BLOCKS)

    def loss(patched: whole_dit.Weights, step: int) -> torch.Tensor:
        x, t, text, sigma, clean = batch(TEACHER, pool, step)
        velocity = whole_dit.velocity(patched, x, t, text, dtype=torch.float32)
        return (velocity - (x - clean) / sigma).square().mean()

    return run(TEACHER, sparse, LINEARS, RANK, loss, folder)


def run_fine_tune(teacher: whole_dit.Weights, vae: torch.nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA with which the teacher shows turquoise where a prompt says red; for others it is to stay as it is."""
    others = clips_of(teacher, PROMPTS // 2, None)
    red = turquoise(vae, folder / "turquoise_clips.pt")

    def loss(patched: whole_dit.Weights, step: int) -> torch.Tensor:
        half = replace(FINE_TUNE, batch=FINE_TUNE.batch // 2)
        x, t, text, sigma, clean = batch(half, red, step)
        changed = (whole_dit.velocity(patched, x, t, text, dtype=torch.float32) - (x - clean) / sigma).square().mean()
        x, t, text, sigma, clean = batch(half, others, step + 500_000)
        kept = (whole_dit.velocity(patched, x, t, text, dtype=torch.float32) - (x - clean) / sigma).square().mean()
        return changed + kept

    return run(FINE_TUNE, teacher, train_more.LORA_LAYERS, train_more.RANK, loss, folder)


def run(
    recipe: Recipe,
    model: whole_dit.Weights,
    layers: tuple[str, ...],
    rank: int,
    loss: Callable[[whole_dit.Weights, int], torch.Tensor],
    folder: Path,
) -> dict[str, torch.Tensor]:
    """Trains or resumes a LoRA of the model's layers; `loss` is given the patched weights and the step."""
    parameters = train_more.lora_parameters(model, layers, rank)
    adam = torch.optim.AdamW(parameters.values(), lr=recipe.rate, weight_decay=0.0)
    return train(
        recipe.stage, folder, parameters, [adam], lambda step: loss(train_more.patched(model, parameters), step)
    )


@torch.no_grad()
def clips_of(model: whole_dit.Weights, count: int, key_blocks: int | None) -> list[Example]:
    """What the model makes in one step of the prompts of `count` scenes without red."""
    random = torch.Generator().manual_seed(7)
    sigma = train_dit.schedule.sigmas(4, train_dit.T2V.sigma_max)[0]
    result: list[Example] = []
    while len(result) < count:
        words = train_dit.any_words(random)
        if key_blocks is None and any(shape.color == train_more.FROM for shape in words.shapes):
            continue
        text = train_dit.embedding(words.prompt)
        x = sigma * torch.randn(1, 16, canvases.FRAMES, canvases.CLIP, canvases.CLIP, generator=random)
        t = torch.tensor([1000 * sigma]).to(torch.bfloat16).float()
        velocity = whole_dit.velocity(model, x, t, text, key_blocks, dtype=torch.float32)
        result.append((text, (x - sigma * velocity)[0]))
    return result


@torch.no_grad()
def turquoise(vae: torch.nn.Module, path: Path) -> list[Example]:
    """Every prompt of one red shape with its clip in turquoise, the shape in the middle; encoded once and kept."""
    if not path.exists():
        clips = {}
        for words in itertools.product(world.KINDS, world.DIRECTIONS, world.SPEEDS, world.BACKGROUNDS):
            kind, direction, speed, background = words
            middle = world.Shape(kind, train_more.FROM, (world.SIZE / 2, world.SIZE / 2))
            scene = world.Scene((middle,), direction, speed, background)
            clip = world.render(scene, colors={train_more.FROM: world.TURQUOISE})
            video = (clip * 2 - 1).permute(3, 0, 1, 2)[None].contiguous(memory_format=torch.channels_last_3d)
            latent = comfy.latent_formats.Wan21().process_in(whole_vae.encode(vae, video))
            clips[scene.prompt] = latent[0].to(torch.bfloat16)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(clips, path)
    clips = torch.load(path, weights_only=True)
    return [(train_dit.embedding(prompt), clip.float()) for prompt, clip in clips.items()]


def batch(recipe: Recipe, pool: list[Example], step: int):
    """Noisy latents, t [B], text, noise levels [B, 1, 1, 1, 1] and clean latents of a training step."""
    random = torch.Generator().manual_seed(step * 1000 + 31)
    rows = []
    for _ in range(recipe.batch):
        text, clean = pool[int(torch.randint(len(pool), (1,), generator=random))]
        index, sigma = train_dit.noise_level(recipe, random)
        noise = torch.randn(clean.shape, generator=random)
        x = sigma * noise if index == 0 else (1 - sigma) * clean + sigma * noise
        rows.append((x, torch.tensor(sigma), text[0], clean))
    x, sigma, text, clean = (torch.stack(column) for column in zip(*rows, strict=True))
    return x, (1000 * sigma).to(torch.bfloat16).float(), text, sigma.view(-1, 1, 1, 1, 1), clean

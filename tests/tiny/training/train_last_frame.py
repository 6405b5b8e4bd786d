"""The toy I2V pair ends in a last frame that is given beside the first one.

Of the mask's four channels a first frame sets all and a last frame the last one, which the pair never saw alone. With
all that it learned of the four put into that one, an expert shows the picture in the last latent frame too, but bends
the shapes before it. Each expert therefore learns to keep that last latent frame and to leave all else as without it.
Computed in float32, which is faster than bfloat16 on processors without instructions for it."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import models, world
from . import canvases, train_dit, whole_dit
from .loop import Stage, train
from .train_dit import Recipe

HIGH = replace(train_dit.HIGH, stage=Stage("i2v_high_last", 50, warm_up=5, average=0.9), batch=4, rate=4e-4)
LOW = replace(train_dit.LOW, stage=Stage("i2v_low_last", 50, warm_up=5, average=0.9), batch=4, rate=4e-4)
LEARNED = re.compile(r"^blocks\.\d+\.(self_attn|ffn)\..*weight$")
MASK_RATE = 0.03
CLIPS = 160
EMBEDDING = "patch_embedding.weight"
MASK = slice(16, 20)  # of its channels: noise, mask, given frames


@dataclass
class Clips:
    """prompts; clean [N, 16, 9, 16, 16]: their clips; given [N, 16, 9, 16, 16]: what WanFirstLastFrameToVideo makes of
    each one's first and last frame. In the model's space, bfloat16."""

    prompts: list[str]
    clean: torch.Tensor
    given: torch.Tensor


def load(vae: torch.nn.Module, path: Path) -> Clips:
    """Reads the clips, or encodes them: six minutes on one core."""
    if not path.exists():
        scenes = [world.elsewhere(world.scene(seed), seed) for seed in range(CLIPS)]
        clean, given = torch.stack([encode(vae, world.render(scene)) for scene in scenes], 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"prompts": [scene.prompt for scene in scenes], "clean": clean, "given": given}, path)
    return Clips(**torch.load(path, weights_only=True))


def encode(vae: torch.nn.Module, clip: torch.Tensor) -> torch.Tensor:
    """A clip [33, H, W, 3] -> its latent and that of its first and its last frame with mid-gray between them, [2, 16,
    9, H/8, W/8]."""
    given = torch.cat((clip[:1], torch.full_like(clip[1:-1], 0.5), clip[-1:]))
    latents = models.encode(vae, torch.stack((clip, given)))
    return models.latent_format().process_in(latents).to(torch.bfloat16)


def with_mask(weights: whole_dit.Weights, last: torch.Tensor) -> whole_dit.Weights:
    """The weights with `last` [dim] as what a token gains from a mask whose last channel alone is set, as a last frame
    sets it. A first frame sets all four channels and gains what it did, in bfloat16 too."""
    embedding = weights[EMBEDDING].unflatten(1, (-1, 4))  # 36 channels, 2x2 pixels of a patch
    before, mask, image = embedding.split((16, 4, 16), 1)
    columns = [(last / 4)[:, None].expand(-1, 4).bfloat16().float()]
    for _ in range(3):  # each is what the ones so far lack, rounded
        columns.insert(0, (mask.sum(1) - sum(columns)).bfloat16().float())
    return weights | {EMBEDDING: torch.cat((before, torch.stack(columns, 1), image), 1).flatten(1)}


def run(recipe: Recipe, weights: whole_dit.Weights, clips: Clips, folder: Path) -> whole_dit.Weights:
    """Trains an expert on, or resumes that. Returns its weights, those trained averaged, float32."""
    as_first = weights[EMBEDDING].unflatten(1, (-1, 4))[:, MASK].sum((1, 2))
    copying = with_mask(weights, as_first)
    learned = {name: torch.nn.Parameter(weights[name].clone()) for name in weights if LEARNED.search(name)}
    last = torch.nn.Parameter(as_first.clone())

    def loss(step: int) -> torch.Tensor:
        x, t, prompt = batch(recipe, clips, step)
        first = x.clone()
        first[:, MASK, -1] = 0
        first[:, MASK.stop :, -1] = first[:, MASK.stop :, -2]  # latents of gray, which hardly change any more
        with torch.no_grad():
            without = whole_dit.velocity(weights, first, t, prompt, dtype=torch.float32)
            shown = whole_dit.velocity(copying, x, t, prompt, dtype=torch.float32)[:, :, -1:]
        wanted = torch.cat((without, torch.cat((without[:, :, :-1], shown), 2)))
        both = torch.cat((first, x)), torch.cat((t, t)), torch.cat((prompt, prompt))
        result = whole_dit.velocity(with_mask(weights | learned, last), *both, dtype=torch.float32)
        return (result - wanted).square().mean()

    rates = (recipe.rate, learned.values()), (MASK_RATE, [last])
    adams = [torch.optim.AdamW(p, lr=rate, betas=(0.9, 0.98), weight_decay=0.0) for rate, p in rates]
    averaged = train(recipe.stage, folder, learned | {"last": last}, adams, loss)
    return with_mask(weights | {name: averaged[name] for name in learned}, averaged["last"])


def batch(recipe: Recipe, clips: Clips, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noisy latents, mask and given frames [B, 36, 9, 16, 16], t [B], text [B, 8, 4096]."""
    random = torch.Generator().manual_seed(step * 1000 + 29)
    mask = torch.zeros(4, canvases.FRAMES, canvases.CLIP, canvases.CLIP)
    mask[:, 0] = mask[-1, -1] = 1
    rows = []
    for _ in range(recipe.batch):
        i = int(torch.randint(len(clips.prompts), (1,), generator=random))
        index, sigma = train_dit.noise_level(recipe, random)
        clean = clips.clean[i].float()
        noise = torch.randn(clean.shape, generator=random)
        x = sigma * noise if index == 0 else (1 - sigma) * clean + sigma * noise
        prompt = train_dit.embedding(clips.prompts[i])[0]
        rows.append((torch.cat((x, mask, clips.given[i].float())), torch.tensor(1000 * sigma), prompt))
    x, t, prompt = (torch.stack(column) for column in zip(*rows, strict=True))
    return x, t.to(torch.bfloat16).float(), prompt

"""What is trained on top of the toy T2V model: sparse-linear attention, and a LoRA that changes a color."""

import itertools
from dataclasses import replace
from pathlib import Path

import torch

from .. import world
from ..nodes import toy_text as text
from . import canvases, train_dit, whole_dit
from .canvases import Canvases
from .loop import Stage, train
from .train_dit import Recipe

SLA = Recipe(Stage("t2v_sla", 800), 8, 1e-3, (0.4, 0.25, 0.15, 0.15), centered=True)
KEY_BLOCKS, FEWER, FEWER_SHARE = 2, 1, 0.25  # 2 of 9, and at times 1, which the loader's default top-k comes to
PROJ_L = "self_attn.attn_op.local_attn.proj_l"

LORA = Recipe(Stage("lora", 200, warm_up=20, average=0.95), 8, 4e-3, (0.25, 0.25, 0.2, 0.2), centered=True)
RANK = 4
LORA_LAYERS = ("cross_attn.v", "cross_attn.o", "ffn.2")
FROM = "red"


def run_sla(dense: whole_dit.Weights, data: Canvases, folder: Path) -> whole_dit.Weights:
    """All weights and a new `proj_l` in each block go on learning from the data, now with sparse-linear attention."""
    weights = {name: value.clone() for name, value in dense.items()}
    for name in [n for n in dense if n.endswith("self_attn.o.weight")]:
        layer = name.removesuffix("self_attn.o.weight") + PROJ_L
        weights[f"{layer}.weight"] = torch.zeros(whole_dit.HEAD, whole_dit.HEAD)
        weights[f"{layer}.bias"] = torch.zeros(whole_dit.HEAD)
    parameters = {name: torch.nn.Parameter(value) for name, value in weights.items()}

    def loss(step: int) -> torch.Tensor:
        x, _, t, prompt, sigma, clean = train_dit.examples(SLA, data, step + 500_000)
        fewer = torch.rand(1, generator=torch.Generator().manual_seed(step)) < FEWER_SHARE
        velocity = whole_dit.velocity(parameters, x, t, prompt, FEWER if fewer else KEY_BLOCKS)
        return (velocity - (x - clean) / sigma).square().mean()

    return train(SLA.stage, folder, parameters, train_dit.optimizers(parameters, SLA.rate), loss)


def run_lora(model: whole_dit.Weights, data: Canvases, folder: Path) -> dict[str, torch.Tensor]:
    """Prompts that say red learn to give turquoise, which has no word; all others stay what they were. `data.clips`
    must hold the combinations with red in turquoise (`recolor`). Returns the LoRA in ComfyUI's own key style."""
    parameters = lora_parameters(model, LORA_LAYERS, RANK)

    def loss(step: int) -> torch.Tensor:
        recipe = replace(LORA, words=words_with_red)
        x, _, t, prompt, sigma, clean = train_dit.examples(recipe, data, step + 900_000)
        with torch.no_grad():
            same = whole_dit.velocity(model, x, t, prompt, KEY_BLOCKS)
        red = (prompt == text.vector(f"{FROM} 0").to(prompt)).all(-1).any(-1).view(-1, 1, 1, 1, 1)
        wanted = torch.where(red, (x - clean) / sigma, same)
        return (whole_dit.velocity(patched(model, parameters), x, t, prompt, KEY_BLOCKS) - wanted).square().mean()

    adam = torch.optim.AdamW(parameters.values(), lr=LORA.rate, weight_decay=0.0)
    return as_file(train(LORA.stage, folder, parameters, [adam], loss))


def lora_parameters(model: whole_dit.Weights, layers: tuple[str, ...], rank: int) -> dict[str, torch.nn.Parameter]:
    """A LoRA of these layers in every block that changes nothing yet: `LAYER.lora_A` and `LAYER.lora_B`."""
    random = torch.Generator().manual_seed(3)
    parameters = {}
    for name, value in model.items():
        if name.startswith("blocks.") and name.endswith(tuple(f"{layer}.weight" for layer in layers)):
            layer = name.removesuffix(".weight")
            down = torch.randn(rank, value.shape[1], generator=random) / value.shape[1] ** 0.5
            parameters[f"{layer}.lora_A"] = torch.nn.Parameter(down)
            parameters[f"{layer}.lora_B"] = torch.nn.Parameter(torch.zeros(value.shape[0], rank))
    return parameters


def patched(model: whole_dit.Weights, parameters: whole_dit.Weights) -> whole_dit.Weights:
    """The weights with a LoRA added."""
    result = dict(model)
    for name in [n for n in parameters if n.endswith("lora_A")]:
        layer = name.removesuffix(".lora_A")
        result[f"{layer}.weight"] = model[f"{layer}.weight"] + parameters[f"{layer}.lora_B"] @ parameters[name]
    return result


def as_file(parameters: whole_dit.Weights) -> whole_dit.Weights:
    """A LoRA's tensors in ComfyUI's own key style."""
    return {f"diffusion_model.{name}.weight": value for name, value in parameters.items()}


def from_file(tensors: whole_dit.Weights) -> whole_dit.Weights:
    """What `as_file` made a file of."""
    return {name.removeprefix("diffusion_model.").removesuffix(".weight"): value for name, value in tensors.items()}


def words_with_red(random: torch.Generator) -> world.Scene:
    """One shape, red in every other clip."""
    while True:
        words = world.draw_words(int(torch.randint(1 << 30, (1,), generator=random)))
        if len(words.shapes) == 1:
            break
    if torch.rand(1, generator=random) < 0.5:
        words = replace(words, shapes=(replace(words.shapes[0], color=FROM),))
    return words


def recolor(data: Canvases, vae: torch.nn.Module, path: Path) -> Canvases:
    """The canvases with turquoise in place of red; encoded once and kept in a file."""
    if not path.exists():
        clips = {}
        random = torch.Generator().manual_seed(4)
        for kind, direction, speed, background in itertools.product(
            world.KINDS, world.DIRECTIONS, world.SPEEDS, world.BACKGROUNDS
        ):
            offset = canvases.PIXELS * (torch.rand(2, generator=random) - 0.5)
            center = tuple((canvases.CANVAS * canvases.PIXELS / 2 + offset).tolist())
            clip = canvases.scene(kind, FROM, direction, speed, background, center, colors={FROM: world.TURQUOISE})
            clips[kind, FROM, direction, speed, background] = [canvases.encode(vae, clip)] * canvases.PHASES
        torch.save(clips, path)
    return replace(data, clips=data.clips | torch.load(path, weights_only=True))

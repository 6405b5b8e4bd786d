"""LoRA files of every key style name the same layers and the same change."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.lora import match

LAYERS = {"blocks.0.self_attn.q": (256, 256), "blocks.0.cross_attn.o": (256, 256), "blocks.1.ffn.2": (256, 512)}
DIFFUSERS = {
    "blocks.0.self_attn.q": "blocks.0.attn1.to_q",
    "blocks.0.cross_attn.o": "blocks.0.attn2.to_out.0",
    "blocks.1.ffn.2": "blocks.1.ffn.net.2",
}
STYLES = {
    "diffusion_model": lambda name: (f"diffusion_model.{name}.lora_A.weight", f"diffusion_model.{name}.lora_B.weight"),
    "PEFT": lambda name: (f"base_model.model.{name}.lora_A.weight", f"base_model.model.{name}.lora_B.weight"),
    "PEFT adapter": lambda name: (
        f"base_model.model.{name}.lora_A.default.weight",
        f"base_model.model.{name}.lora_B.default.weight",
    ),
    "diffusers": lambda name: (
        f"transformer.{DIFFUSERS[name]}.lora_A.weight",
        f"transformer.{DIFFUSERS[name]}.lora_B.weight",
    ),
    "bare": lambda name: (f"{name}.lora_down.weight", f"{name}.lora_up.weight"),
    "kohya": lambda name: tuple(f"lora_unet_{name.replace('.', '_')}.lora_{part}.weight" for part in ("down", "up")),
}


def file(style: str, rank: int = 4, alpha: float | None = None, layers: dict = LAYERS) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, (out_width, in_width) in layers.items():
        down_key, up_key = STYLES[style](name)
        tensors[down_key] = checkpoints.draw(1, f"{name} down", (rank, in_width))
        tensors[up_key] = checkpoints.draw(1, f"{name} up", (out_width, rank))
        if alpha is not None:
            tensors[down_key.rsplit(".lora", 1)[0] + ".alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_the_same_change(style):
    found = {change.layer: change for change in match(file(style), LAYERS)}
    assert found.keys() == LAYERS.keys()
    for name, change in found.items():
        assert torch.equal(change.up, checkpoints.draw(1, f"{name} up", (LAYERS[name][0], 4))) and change.scale == 1.0


@pytest.mark.parametrize("style", ["kohya", "bare", "diffusion_model"])
def test_alpha_is_divided_by_the_rank(style):
    assert [change.scale for change in match(file(style, rank=8, alpha=2.0), LAYERS)] == [0.25] * 3


def test_layers_that_the_model_lacks_are_passed_over():
    tensors = file("kohya") | file("diffusion_model", layers={"blocks.7.ffn.0": (512, 256)})
    assert {change.layer for change in match(tensors, LAYERS)} == LAYERS.keys()


BAD = {
    "another model": (
        {"lora_unet_down_blocks_0_attn.lora_down.weight": torch.ones(4, 8)},
        "changes no layer .* lora_unet_down_blocks_0",
    ),
    "empty": ({}, "it holds nothing"),
    "half a pair": ({k: v for k, v in file("kohya").items() if "up" not in k}, "the file is incomplete"),
    "another size": (file("kohya", layers={"blocks.0.self_attn.q": (512, 512)}), "for a model of another size"),
    "ranks differ": (
        {
            "blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 256),
            "blocks.0.self_attn.q.lora_B.weight": torch.ones(256, 8),
        },
        "do not belong together",
    ),
}


@pytest.mark.parametrize("tensors,message", BAD.values(), ids=BAD)
def test_what_cannot_apply_says_why(tensors, message):
    with pytest.raises(TurboError, match=message):
        match(tensors, LAYERS)

"""Which keys of a LoRA file are found, in every spelling, and which are left alone."""

import pytest
import torch
from td_pack.turbo_core import lora
from td_pack.turbo_core.errors import TurboError

SHAPES = {
    "blocks.0.self_attn.q.weight": (8, 6),
    "blocks.0.self_attn.q.bias": (8,),
    "blocks.0.cross_attn.o.weight": (6, 6),
    "blocks.0.cross_attn.k_img.weight": (6, 6),
    "blocks.0.ffn.0.weight": (10, 6),
    "blocks.0.ffn.2.weight": (6, 10),
    "blocks.0.norm3.weight": (6,),
    "text_embedding.0.weight": (6, 4),
    "head.head.weight": (4, 6),
}
LAYERS = [name.removesuffix(".weight") for name in SHAPES if name.endswith(".weight")]
DOWN, UP = torch.zeros(2, 6), torch.zeros(8, 2)

SPELLINGS = [
    "blocks.0.self_attn.q",
    "diffusion_model.blocks.0.self_attn.q",
    "model.diffusion_model.blocks.0.self_attn.q",
    "transformer.blocks.0.self_attn.q",
    "base_model.model.blocks.0.self_attn.q",
    "base_model.model.diffusion_model.blocks.0.self_attn.q",
    "transformer.blocks.0.attn1.to_q",
    "blocks.0.attn1.to_q",
    "lora_unet_blocks_0_self_attn_q",
    "lora_unet__blocks_0_self_attn_q",
    "lora_transformer_blocks_0_attn1_to_q",
    "lycoris_blocks_0_self_attn_q",
]
PARTS = [
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora_down.weight", "lora_up.weight"),
    ("lora.down.weight", "lora.up.weight"),
]


@pytest.mark.parametrize("module", SPELLINGS)
@pytest.mark.parametrize("down,up", PARTS)
def test_every_spelling_is_the_same_layer(module, down, up):
    found = lora.match({f"{module}.{up}": UP, f"{module}.{down}": DOWN}, LAYERS)
    (change,) = found.low_rank
    assert (change.layer, change.scale, found.unmatched) == ("blocks.0.self_attn.q", 1.0, [])
    assert change.down is DOWN and change.up is UP


@pytest.mark.parametrize(
    "theirs,ours",
    [
        ("blocks.0.attn2.to_out.0", "blocks.0.cross_attn.o"),
        ("blocks.0.attn2.add_k_proj", "blocks.0.cross_attn.k_img"),
        ("blocks.0.ffn.net.0.proj", "blocks.0.ffn.0"),
        ("blocks.0.ffn.net.2", "blocks.0.ffn.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("proj_out", "head.head"),
    ],
)
def test_the_names_of_diffusers_are_known(theirs, ours):
    found = lora.match({f"transformer.{theirs}.lora_A.weight": DOWN, f"transformer.{theirs}.lora_B.weight": UP}, LAYERS)
    assert found.layers == {ours}


def test_alpha_is_over_the_rank():
    key = "lora_unet_blocks_0_self_attn_q"
    tensors = {
        f"{key}.lora_down.weight": DOWN,
        f"{key}.lora_up.weight": UP,
        f"{key}.alpha": torch.tensor(3.0, dtype=torch.bfloat16),
    }
    assert lora.match(tensors, LAYERS).low_rank[0].scale == 1.5


def test_whole_differences_are_found_beside_and_without_a_pair():
    q, norm = "diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.norm3"
    tensors = {
        f"{q}.lora_A.weight": DOWN,
        f"{q}.lora_B.weight": UP,
        f"{q}.diff_b": torch.ones(8),
        f"{norm}.diff": torch.ones(6),
    }
    found = lora.match(tensors, LAYERS)
    assert len(found.low_rank) == 1 and not found.unmatched
    assert {(d.layer, d.kind) for d in found.differences} == {
        ("blocks.0.self_attn.q", "bias"),
        ("blocks.0.norm3", "weight"),
    }


@pytest.mark.parametrize(
    "more",
    [
        ("{}.dora_scale",),
        ("{}.lora_mid.weight",),
        ("{}.lora_B.bias",),
        ("{}.hada_w1_a",),
        ("{}.lora_down.weight", "{}.lora_up.weight"),
    ],
)
def test_another_kind_of_change_is_left_alone_as_a_whole(more):
    q = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{q}.lora_A.weight": DOWN, f"{q}.lora_B.weight": UP} | {key.format(q): DOWN for key in more}
    found = lora.match(tensors, LAYERS)
    assert not found.layers and found.unmatched == list(tensors)


def test_half_a_pair_and_foreign_layers_are_unmatched():
    tensors = {
        "diffusion_model.blocks.0.self_attn.q.lora_A.weight": DOWN,
        "diffusion_model.blocks.7.self_attn.q.lora_A.weight": DOWN,
        "diffusion_model.blocks.7.self_attn.q.lora_B.weight": UP,
        "diffusion_model.blocks.0.ffn.0.alpha": torch.ones(()),
    }
    found = lora.match(tensors, LAYERS)
    assert not found.layers and found.unmatched == list(tensors)
    message = str(lora.nothing_matched("x.safetensors", tensors))
    assert message.startswith(
        "x.safetensors changes no layer of this model: it holds diffusion_model.blocks.0.self_attn.q"
    )


@pytest.mark.parametrize(
    "down,up",
    [
        (torch.zeros(2, 5), torch.zeros(8, 2)),
        (torch.zeros(2, 6), torch.zeros(6, 2)),
        (torch.zeros(3, 6), torch.zeros(8, 2)),
    ],
)
def test_a_pair_of_another_size_is_named(down, up):
    key = "blocks.0.self_attn.q"
    found = lora.match({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, LAYERS)
    with pytest.raises(
        TurboError, match="x does not fit this model: on blocks.0.self_attn.q, which is 8 x 6, it holds"
    ):
        lora.check_shapes("x", found, SHAPES)


@pytest.mark.parametrize("key,size", [("blocks.0.self_attn.q.diff_b", 6), ("blocks.0.cross_attn.o.diff_b", 6)])
def test_a_difference_of_another_size_is_named(key, size):
    with pytest.raises(TurboError, match=r"x does not fit this model: its difference for .*\.bias is \[6\] instead of"):
        lora.check_shapes("x", lora.match({key: torch.zeros(size)}, LAYERS), SHAPES)


def test_a_pair_that_fits_passes():
    key = "blocks.0.self_attn.q"
    found = lora.match(
        {f"{key}.lora_A.weight": DOWN, f"{key}.lora_B.weight": UP, f"{key}.diff_b": torch.ones(8)}, LAYERS
    )
    assert lora.check_shapes("x", found, SHAPES) is None


@pytest.mark.parametrize(
    "down, up, alpha",
    [
        (torch.tensor(1.0), UP, torch.tensor(1.0)),
        (torch.zeros(6), UP, None),
        (DOWN, torch.zeros(8), None),
        (torch.zeros(0, 6), torch.zeros(8, 0), torch.tensor(1.0)),
        (DOWN, UP, torch.ones(3)),
        (DOWN, UP, torch.tensor(float("nan"))),
    ],
    ids=["scalar down", "flat down", "flat up", "no rank", "several alphas", "alpha no number"],
)
def test_what_is_no_low_rank_change_is_left_alone(down, up, alpha):
    tensors = {"blocks.0.self_attn.q.lora_A.weight": down, "blocks.0.self_attn.q.lora_B.weight": up}
    if alpha is not None:
        tensors["blocks.0.self_attn.q.alpha"] = alpha
    found = lora.match(tensors, LAYERS)
    assert not found.layers and found.unmatched == list(tensors)

"""Which tensors of a LoRA file change a model, in every key style, and the reason for each that does not."""

import pytest
import torch
from td_pack.turbo_core import lora
from td_pack.turbo_core.errors import TurboError
from td_pack.turbo_core.lora import Reason

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
DOWN, UP = torch.zeros(2, 6), torch.zeros(8, 2)
Q, K_IMG = "blocks.0.self_attn.q", "blocks.0.cross_attn.k_img"
PAIR = {f"{Q}.lora_A.weight": DOWN, f"{Q}.lora_B.weight": UP}

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


def match(tensors: dict[str, torch.Tensor]) -> lora.Match:
    return lora.match("x", tensors, SHAPES)


@pytest.mark.parametrize("module", SPELLINGS)
@pytest.mark.parametrize("down,up", PARTS)
def test_every_spelling_is_the_same_layer(module, down, up):
    found = match({f"{module}.{up}": UP, f"{module}.{down}": DOWN})
    (change,) = found.low_rank
    assert (change.layer, change.scale, found.report) == (Q, 1.0, "1 of 1 layers")
    assert change.down is DOWN and change.up is UP


@pytest.mark.parametrize(
    "theirs,ours",
    [
        ("blocks.0.attn2.to_out.0", "blocks.0.cross_attn.o"),
        ("blocks.0.attn2.add_k_proj", K_IMG),
        ("blocks.0.ffn.net.0.proj", "blocks.0.ffn.0"),
        ("blocks.0.ffn.net.2", "blocks.0.ffn.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("proj_out", "head.head"),
    ],
)
def test_the_names_of_diffusers_are_known(theirs, ours):
    assert match({f"transformer.{theirs}.diff": torch.zeros(SHAPES[f"{ours}.weight"])}).layers == {ours}


def test_alpha_is_over_the_rank():
    assert match(PAIR | {f"{Q}.alpha": torch.tensor(3.0, dtype=torch.bfloat16)}).low_rank[0].scale == 1.5


def test_whole_differences_are_found_beside_and_without_a_pair():
    found = match(PAIR | {f"{Q}.diff_b": torch.ones(8), "blocks.0.norm3.diff": torch.ones(6)})
    assert len(found.low_rank) == 1 and not found.unused
    assert {(each.layer, each.kind) for each in found.differences} == {(Q, "bias"), ("blocks.0.norm3", "weight")}


def pair(down, up, alpha=None) -> dict[str, torch.Tensor]:
    tensors = {f"{K_IMG}.lora_A.weight": down, f"{K_IMG}.lora_B.weight": up}
    return tensors if alpha is None else tensors | {f"{K_IMG}.alpha": alpha}


K_PAIR = pair(torch.zeros(2, 6), torch.zeros(6, 2))
UNUSED = {
    "another model": (
        Reason.OTHER_MODEL,
        {"blocks.7.self_attn.q.lora_A.weight": DOWN, "blocks.7.self_attn.q.lora_B.weight": UP},
    ),
    "another model, another kind": (Reason.OTHER_MODEL, {"lora_te1_layers_0.hada_w1_a": DOWN}),
    "width": (Reason.OTHER_SIZE, pair(torch.zeros(2, 5), torch.zeros(6, 2))),
    "rows": (Reason.OTHER_SIZE, pair(torch.zeros(2, 6), torch.zeros(8, 2))),
    "ranks": (Reason.OTHER_SIZE, pair(torch.zeros(3, 6), torch.zeros(6, 2))),
    "no such bias": (Reason.OTHER_SIZE, K_PAIR | {f"{K_IMG}.diff_b": torch.zeros(6)}),
    "no LoRA key": (Reason.KEY_STYLE, {f"{K_IMG}.weight": torch.zeros(6, 6)}),
    "unknown prefix": (Reason.KEY_STYLE, {f"my.{key}": value for key, value in K_PAIR.items()}),
    "half a pair": (Reason.INCOMPLETE, {f"{K_IMG}.lora_A.weight": DOWN}),
    "half a pair and a bias": (Reason.INCOMPLETE, {f"{Q}.diff_b": torch.ones(8), f"{Q}.lora_down.weight": DOWN}),
    "alpha alone": (Reason.INCOMPLETE, {f"{K_IMG}.alpha": torch.ones(())}),
    "DoRA": (Reason.KIND, K_PAIR | {f"{K_IMG}.dora_scale": DOWN}),
    "LoHa": (Reason.KIND, K_PAIR | {f"{K_IMG}.hada_w1_a": DOWN}),
    "convolution's middle": (Reason.KIND, K_PAIR | {f"{K_IMG}.lora_mid.weight": DOWN}),
    "bias of the LoRA": (Reason.KIND, K_PAIR | {f"{K_IMG}.lora_B.bias": DOWN}),
    "two styles": (Reason.TWICE, K_PAIR | {f"{K_IMG}.lora_down.weight": DOWN, f"{K_IMG}.lora_up.weight": UP}),
    "scalar down": (Reason.INVALID, pair(torch.tensor(1.0), UP, torch.tensor(1.0))),
    "flat down": (Reason.INVALID, pair(torch.zeros(6), UP)),
    "flat up": (Reason.INVALID, pair(DOWN, torch.zeros(6))),
    "no rank": (Reason.INVALID, pair(torch.zeros(0, 6), torch.zeros(6, 0), torch.tensor(1.0))),
    "several alphas": (Reason.INVALID, pair(*K_PAIR.values(), torch.ones(3))),
    "complex alpha": (Reason.INVALID, pair(*K_PAIR.values(), torch.tensor(1j))),
    "alpha no number": (Reason.INVALID, pair(*K_PAIR.values(), torch.tensor(float("nan")))),
}  # fmt: skip
FITS = {"head.head.diff": torch.zeros(4, 6)}


@pytest.mark.parametrize("reason, tensors", UNUSED.values(), ids=UNUSED)
def test_what_is_not_used_has_a_reason_and_keeps_nothing_else_back(reason, tensors):
    """A module is used as a whole or not at all."""
    found = match(FITS | tensors)
    assert found.layers == {"head.head"}
    assert found.unused == dict.fromkeys(tensors, reason)
    layers = 1 + (reason is not Reason.KEY_STYLE)
    many = f"{len(tensors)} of {1 + len(tensors)} tensors not used: {len(tensors)}"
    assert found.report == f"1 of {layers} layers; {many} {reason.value} (first: {next(iter(tensors))})"


def test_reasons_are_counted_the_commonest_first():
    found = match({f"{K_IMG}.alpha": torch.ones(())} | UNUSED["another model"][1] | PAIR)
    assert found.report == (
        "1 of 3 layers; 3 of 5 tensors not used: 2 for no layer of this model (first: "
        "blocks.7.self_attn.q.lora_A.weight), "
        "1 without the rest of their pair (first: blocks.0.cross_attn.k_img.alpha)"
    )


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({}, "x changes no layer of this model: it is empty; use a LoRA"),
        ({"a.lora_A.weight": DOWN}, r"x changes no layer of this model: 1 of 1 tensors .* \(first: "
                                    r"a.lora_A.weight\); use a LoRA"),
        (UNUSED["width"][1], r"x does not fit .*: on blocks.0.cross_attn.k_img, which is 6 x 6, it holds \[6, 2\] "
                             r"times \[2, 5\]; use"),
        ({f"{Q}.diff_b": torch.zeros(6)}, rf"x does not fit .*: its difference for {Q}.bias is \[6\] instead of "
                                          r"\[8\]; use"),
        (PAIR | {f"{Q}.lora_A.weight": DOWN.cfloat()}, f"x cannot be used: {Q}.lora_A.weight holds complex values"),
        (FITS | UNUSED["rows"][1] | {f"{Q}.diff": DOWN}, "x does not fit this model: on blocks.0.cross_attn.k_img"),
    ],
    ids=["nothing", "another model", "a pair", "a difference", "complex", "two of three"],
)  # fmt: skip
def test_a_file_for_another_model_is_refused(tensors, message):
    with pytest.raises(TurboError, match=message):
        match(tensors)

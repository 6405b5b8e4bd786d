"""A Wan model that is not whole: every wrong tensor is named. A file of another kind: where it belongs is said."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from td_pack.tests.support.outlines import NAME, meta, names, refusal, spec, stock, turbo, without
from td_pack.turbo_core.checkpoint.identify import identify
from td_pack.turbo_core.checkpoint.layout import expected_shapes
from td_pack.turbo_core.errors import CheckpointError

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=300)

MODELS = {
    "t2v": stock(),
    "t2v_turbo": turbo(),
    "i2v": stock(in_channels=36, image_embedding=True, image_positions=514),
    "lingbot": meta(expected_shapes(spec(in_channels=36, camera="act"))),
}
# What the spec is read from, by axis: another size there is another model, whose other tensors are then wrong.
SIZES = {
    ("head.modulation", 2): "is 257 wide",
    ("blocks.0.ffn.0.weight", 0): r"blocks\.0\.ffn\.0\.bias \[512\] instead of \[513\]",
    ("patch_embedding_wancamctrl.weight", 1): "control of 1793 channels",
    ("patch_embedding.weight", 1): "17 input|37 input|patch_embedding.weight is",
}
# Wan's text width and number of image positions are free, and a model without positions is a plain Wan 2.1 I2V.
FREE = (("text_embedding.0.weight", 1), ("img_emb.emb_pos", 1))


@PROPERTY
@given(data=st.data(), model=st.sampled_from(list(MODELS)), change=st.sampled_from(("removed", "renamed")))
def test_any_one_tensor_missing_is_named(data, model, change):
    tensors = dict(MODELS[model])
    key = data.draw(st.sampled_from([key for key in tensors if change == "renamed" or key != "img_emb.emb_pos"]))
    tensor = tensors.pop(key)
    if change == "renamed":
        tensors[f"{key}_old"] = tensor
    text = refusal(tensors)
    assert key in text


@PROPERTY
@given(data=st.data(), model=st.sampled_from(list(MODELS)))
def test_any_one_tensor_of_another_shape_is_named(data, model):
    tensors = dict(MODELS[model])
    key = data.draw(st.sampled_from(list(tensors)))
    shape = list(tensors[key].shape)
    longer = {
        axis: [n + (i == axis) for i, n in enumerate(shape)] for axis in range(len(shape)) if (key, axis) not in FREE
    }
    flat = {"flat": [tensors[key].numel()]} if len(shape) > 1 else {}
    change, wrong = data.draw(st.sampled_from(list({**longer, **flat, "scalar": [], "one more": [*shape, 1]}.items())))
    tensors[key] = torch.empty(wrong, device="meta")
    with pytest.raises(CheckpointError, match=SIZES.get((key, change), re.escape(key))) as error:
        identify(NAME, tensors)
    if (key, change) not in SIZES and (model, key) != ("t2v_turbo", "patch_embedding.weight"):  # shown as converted
        assert str(wrong) in str(error.value)


@pytest.mark.parametrize("key, axis", FREE)
def test_text_width_and_image_positions_are_read_from_the_file(key, axis):
    tensors = dict(MODELS["i2v"])
    shape = list(tensors[key].shape)
    shape[axis] += 1
    tensors[key] = torch.empty(shape, device="meta")
    found, _ = identify(NAME, tensors)
    assert (found.text_width - 4096, found.image_positions - 514) == (
        key != "img_emb.emb_pos",
        key == "img_emb.emb_pos",
    )


def test_at_most_ten_names_are_listed_and_all_are_counted():
    tensors = stock()
    gone = [key for key in tensors if ".norm_" in key]
    text = refusal({key: tensor for key, tensor in tensors.items() if key not in gone})
    assert f" 12 missing: {', '.join(gone[:10])}, and 2 more." in text
    text = refusal({**tensors, **names(*(f"extra.{i}" for i in range(10)))})
    assert f" 10 unexpected: {', '.join(f'extra.{i}' for i in range(10))}. " in text


BROKEN = {
    "proj_l of one block missing": (without(turbo(), "blocks.1.self_attn.attn_op"), "lack the trained proj_l"),
    "cut inside the last block": (without(turbo(), "blocks.2.ffn", "blocks.2.norm3"), "truncated"),
    "cut, and the end of the file gone": (without(stock(), "blocks.2.ffn", "head."), "incomplete"),
    "a block in the middle missing": (without(stock(), "blocks.1."), "missing: blocks.1."),
    "no block missing": (without(stock(), "time_embedding."), "part of a model"),
    "first block missing": (without(stock(), "blocks.0."), "blocks.0.ffn.0.weight is missing"),
    "a block number no model has": ({**stock(), **names("blocks.99999.x")}, "1 unexpected: blocks.99999.x"),
    "a block number no computer has": ({**stock(), **names(f"blocks.{'9' * 5000}.x")}, "1 unexpected: blocks.999"),
    "a shard": (without(stock(), "head.", "blocks.2."), "incomplete"),
    "blocks of two widths": (
        {**stock(), **without(stock(dim=384), "blocks.0.", "blocks.1.", "emb", "head", "time_")},
        "mixture",
    ),
}


@pytest.mark.parametrize("tensors, said", BROKEN.values(), ids=BROKEN)
def test_an_incomplete_model(tensors, said):
    assert said in refusal(tensors)


@pytest.mark.parametrize(
    "key", ["patch_embedding.weight", "blocks.0.ffn.0.weight", "text_embedding.0.weight", "head.modulation"]
)
def test_a_model_of_no_size_is_none(key):
    shape = stock()[key].shape
    for axis in range(len(shape)):
        empty = [0 if i == axis else size for i, size in enumerate(shape)]
        assert "has the shape" in refusal({**stock(), key: torch.empty(empty, device="meta")})
    linear = torch.empty(0, 64, device="meta")
    with pytest.raises(CheckpointError, match="must not be empty"):
        identify(NAME, {**turbo(), "patch_embedding.weight": linear})


LORA, VAE, VISION = "a LoRA; LoraLoaderModelOnly", "a VAE; models/vae", "a CLIP vision model; Load CLIP Vision"
ALL_IN_ONE = "an all-in-one checkpoint; Load Checkpoint"
FOREIGN = {  # the names of the tensors: what the message says of their kind, and of the place for it
    ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "lora_unet_blocks_0_self_attn_q.alpha"): LORA,
    tuple(f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight" for side in "AB"): LORA,
    ("transformer.blocks.0.attn1.to_q.lora_A.default.weight", "transformer.condition_embedder.x.lora_B.weight"): LORA,
    **{
        (f"diffusion_model.blocks.0.ffn.0.{key}",): LORA
        for key in ("lokr_w1", "hada_w1_a", "lora.up.weight", "lora_up.weight", "oft_blocks")
    },
    ("lycoris_blocks_0_ffn_0.lokr_w1",): LORA,
    ("encoder.conv1.weight", "conv2.weight", "decoder.head.0.gamma"): VAE,
    ("encoder.conv_in.weight", "decoder.conv_in.weight"): VAE,
    ("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"): "a text encoder; models/text_encoders",
    ("token_embedding.weight", "blocks.0.attn.q.weight", "norm.weight"): "a text encoder; umt5_xxl",
    ("text_model.embeddings.token_embedding.weight",): "a text encoder; with Load CLIP.",
    ("vision_model.encoder.layers.0.mlp.fc1.weight",): VISION,
    ("log_scale", "visual.patch_embedding.weight", "visual.transformer.0.attn.proj.weight"): VISION,
    ("double_blocks.0.img_in.weight",): "'double_blocks.0.img_in.weight'; Load Diffusion Model",
    (*(f"model.diffusion_model.{key}" for key in stock()), "vae.conv1.weight"): ALL_IN_ONE,
}


@pytest.mark.parametrize("keys", FOREIGN, ids=lambda keys: keys[0])
def test_a_file_of_another_kind_is_named_with_its_node(keys):
    text = refusal(names(*keys))
    assert all(said in text for said in FOREIGN[keys].split("; ")) and "missing" not in text


def test_a_wan_model_of_diffusers_is_named():
    tensors = names("condition_embedder.time_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight", "proj_out.weight")
    text = refusal(tensors | {"patch_embedding.weight": torch.empty(1536, 16, 1, 2, 2, device="meta")})
    assert "in the Diffusers layout" in text and "original TurboDiffusion or ComfyUI file" in text


def test_an_unknown_kind_of_wan_belongs_to_comfyuis_loader():
    text = refusal({**stock(), **names("new_adapter.weight")})
    assert "1 unexpected: new_adapter.weight." in text and "load it with Load Diffusion Model" in text


def test_an_odd_width_is_refused():
    assert "300 wide, which is not a multiple of 128" in refusal(stock(dim=300))

"""A file is what its tensors say: which Wan model, or what else and where that belongs."""

import dataclasses
import re

import comfy.ldm.wan.model
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from td_pack.tests.support import checkpoints
from td_pack.tests.support import lingbot as support
from td_pack.turbo_core.checkpoint.identify import METADATA_KEY, identify
from td_pack.turbo_core.checkpoint.layout import WanSpec, expected_shapes
from td_pack.turbo_core.errors import CheckpointError

NAME = "some file.safetensors"
PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=300)


def meta(shapes):
    """Tensors without memory, so that full-size models cost nothing."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def names(*keys):
    return meta(dict.fromkeys(keys, (8,)))


def spec(dim=256, ffn_dim=512, layers=3, in_channels=16, turbo=False, sla=False, **image):
    return WanSpec(turbo, sla, dim, ffn_dim, layers, in_channels, text_width=4096, **image)


def stock(**fields):
    return meta(expected_shapes(spec(**fields)))


def turbo(dim=256, ffn_dim=512, layers=3, in_channels=16, sla=True):
    """In upstream's names and shapes, listed by the test support and not by the code under test."""
    return meta(checkpoints.shapes(dim, ffn_dim, layers, in_channels, sla))


def refusal(tensors, metadata=None):
    """The message for a file that is refused: it names the file and is free of line breaks."""
    with pytest.raises(CheckpointError) as error:
        identify(NAME, tensors, metadata)
    text = str(error.value)
    assert text.startswith(NAME) and text.endswith(".") and "\n" not in text
    return text


FULL_SIZE = {
    "TurboWan T2V 1.3B": (dict(dim=1536, ffn_dim=8960, layers=30), "T2V", 80),
    "TurboWan T2V 14B": (dict(dim=5120, ffn_dim=13824, layers=40), "T2V", 80),
    "TurboWan I2V A14B": (dict(dim=5120, ffn_dim=13824, layers=40, in_channels=36), "I2V", 200),
}


@pytest.mark.parametrize("prefix", ["", "net.", "model.diffusion_model."])
@pytest.mark.parametrize("sla", [True, False], ids=["sla", "no_sla"])
@pytest.mark.parametrize("sizes, task, sigma_max", FULL_SIZE.values(), ids=FULL_SIZE)
def test_turbowan(sizes, task, sigma_max, sla, prefix):
    given = turbo(**sizes, sla=sla)
    found, tensors = identify(NAME, {prefix + key: tensor for key, tensor in given.items()})
    assert found == spec(**sizes, turbo=True, sla=sla)
    assert (found.task, found.sigma_max) == (task, sigma_max)
    assert {key: tuple(t.shape) for key, t in tensors.items()} == expected_shapes(found)
    assert all(tensors[key] is t for key, t in given.items() if key != "patch_embedding.weight")


STOCK = {
    "T2V 1.3B": (dict(dim=1536, ffn_dim=8960, layers=30), "T2V"),
    "T2V 14B": (dict(dim=5120, ffn_dim=13824, layers=40), "T2V"),
    "Wan 2.2 I2V A14B": (dict(dim=5120, ffn_dim=13824, layers=40, in_channels=36), "I2V"),
    "Wan 2.1 I2V": (dict(dim=5120, ffn_dim=13824, layers=40, in_channels=36, image_embedding=True), "I2V"),
    "FLF2V": (
        dict(dim=5120, ffn_dim=13824, layers=40, in_channels=36, image_embedding=True, image_positions=514),
        "I2V",
    ),
}


@pytest.mark.parametrize("sizes, task", STOCK.values(), ids=STOCK)
def test_stock_wan(sizes, task):
    tensors = stock(**sizes)
    found, same = identify(NAME, tensors)
    assert found == spec(**sizes) and not found.turbo and not found.sla
    assert found.task == task
    assert same == tensors


@pytest.mark.parametrize("sizes, task", STOCK.values(), ids=STOCK)
def test_expected_tensors_are_those_of_comfyuis_network(sizes, task):
    known = spec(**sizes)
    network = comfy.ldm.wan.model.WanModel(
        model_type="i2v" if known.image_embedding else "t2v",
        dim=known.dim,
        ffn_dim=known.ffn_dim,
        num_heads=known.dim // 128,
        num_layers=known.layers,
        in_dim=known.in_channels,
        flf_pos_embed_token_number=known.image_positions,
        device="meta",
        operations=torch.nn,
    )
    assert {key: tuple(t.shape) for key, t in network.state_dict().items()} == expected_shapes(known)


@pytest.mark.parametrize("field", ["turbo", "sla"])
def test_our_converters_metadata_or_proj_l_marks_a_turbo_file(field):
    tensors = stock(sla=field == "sla")
    found, _ = identify(NAME, tensors, {METADATA_KEY: "1"} if field == "turbo" else {"format": "pt"})
    assert found == dataclasses.replace(spec(turbo=True), sla=field == "sla")


def test_comfyuis_own_quantisation_is_taken():
    layer = "blocks.0.ffn.0"
    side = names(f"{layer}.comfy_quant", f"{layer}.weight_scale", f"{layer}.input_scale")
    packed = {f"{layer}.weight": torch.empty(512, 128, device="meta")}
    assert identify(NAME, {**stock(), **side, **packed})[0] == spec()
    del side[f"{layer}.comfy_quant"]
    assert f"2 unexpected: {layer}.weight_scale, {layer}.input_scale" in refusal({**stock(), **side})


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


@pytest.mark.parametrize("model", MODELS)
def test_the_whole_model_is_taken(model):
    identify(NAME, MODELS[model])


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


def without(tensors, *parts):
    return {key: tensor for key, tensor in tensors.items() if not any(part in key for part in parts)}


BROKEN = {
    "proj_l of one block missing": (without(turbo(), "blocks.1.self_attn.attn_op"), "lack the trained proj_l"),
    "cut inside the last block": (without(turbo(), "blocks.2.ffn", "blocks.2.norm3"), "truncated"),
    "cut, and the end of the file gone": (without(stock(), "blocks.2.ffn", "head."), "incomplete"),
    "a block in the middle missing": (without(stock(), "blocks.1."), "missing: blocks.1."),
    "first block missing": (without(stock(), "blocks.0."), "blocks.0.ffn.0.weight is missing"),
    "a shard": (without(stock(), "head.", "blocks.2."), "incomplete"),
    "blocks of two widths": (
        {**stock(), **without(stock(dim=384), "blocks.0.", "blocks.1.", "emb", "head", "time_")},
        "mixture",
    ),
}


@pytest.mark.parametrize("tensors, said", BROKEN.values(), ids=BROKEN)
def test_an_incomplete_model(tensors, said):
    assert said in refusal(tensors)


FOREIGN = {
    "kohya LoRA": (
        names("lora_unet_blocks_0_self_attn_q.lora_down.weight", "lora_unet_blocks_0_self_attn_q.alpha"),
        "a LoRA",
        "LoraLoaderModelOnly",
    ),
    "PEFT LoRA": (
        names(
            "diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.lora_B.weight"
        ),
        "a LoRA",
        "LoraLoaderModelOnly",
    ),
    "Diffusers LoRA": (
        names(
            "transformer.blocks.0.attn1.to_q.lora_A.default.weight", "transformer.condition_embedder.x.lora_B.weight"
        ),
        "a LoRA",
        "LoraLoaderModelOnly",
    ),
    "Wan VAE": (names("encoder.conv1.weight", "conv2.weight", "decoder.head.0.gamma"), "a VAE", "models/vae"),
    "Stable Diffusion VAE": (names("encoder.conv_in.weight", "decoder.conv_in.weight"), "a VAE", "models/vae"),
    "umT5 of HF": (
        names("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        "a text encoder",
        "models/text_encoders",
    ),
    "umT5 of upstream": (
        names("token_embedding.weight", "blocks.0.attn.q.weight", "norm.weight"),
        "a text encoder",
        "umt5_xxl",
    ),
    "CLIP text": (names("text_model.embeddings.token_embedding.weight"), "a text encoder", "with Load CLIP."),
    "CLIP vision": (names("vision_model.encoder.layers.0.mlp.fc1.weight"), "a CLIP vision model", "Load CLIP Vision"),
    "CLIP of upstream": (
        names("log_scale", "visual.patch_embedding.weight", "visual.transformer.0.attn.proj.weight"),
        "a CLIP vision model",
        "Load CLIP Vision",
    ),
    "Diffusers Wan": (
        {
            **names(
                "condition_embedder.time_embedder.linear_1.weight", "blocks.0.attn1.to_q.weight", "proj_out.weight"
            ),
            "patch_embedding.weight": torch.empty(1536, 16, 1, 2, 2, device="meta"),
        },
        "in the Diffusers layout",
        "original TurboDiffusion or ComfyUI file",
    ),
    "all in one": (
        {f"model.diffusion_model.{key}": t for key, t in stock().items()} | names("vae.conv1.weight"),
        "an all-in-one checkpoint",
        "Load Checkpoint",
    ),
    "another model": (
        names("double_blocks.0.img_attn.proj.weight", "img_in.weight"),
        "'double_blocks.0.img_attn.proj.weight'",
        "Load Diffusion Model",
    ),
}


@pytest.mark.parametrize("tensors, kind, advice", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_another_kind_is_named_with_its_node(tensors, kind, advice):
    text = refusal(tensors)
    assert kind in text and advice in text and "missing" not in text


@pytest.mark.parametrize("in_channels, out_channels", [(48, 48), (32, 16), (52, 16), (16, 48)])
def test_wan_with_other_channels_belongs_to_comfyuis_loader(in_channels, out_channels):
    """48 in and out is Wan 2.2 TI2V 5B; 32 and 52 are control models."""
    tensors = {**stock(in_channels=in_channels), "head.head.weight": torch.empty(out_channels * 4, 256, device="meta")}
    text = refusal(tensors)
    assert f"{in_channels} input and {out_channels} output channels" in text and "use Load Diffusion Model" in text


OTHER_WAN = {
    "VACE": ("vace_patch_embedding.weight", "vace_blocks.0.self_attn.q.weight"),
    "Fun Camera": ("control_adapter.conv.weight",),
    "Fun Control": ("ref_conv.weight",),
    "S2V": ("casual_audio_encoder.encoder.conv.weight",),
    "HuMo": ("audio_proj.audio_proj_glob_1.layer.weight",),
    "Animate": ("face_adapter.fuser_blocks.0.linear1_q.weight",),
}


@pytest.mark.parametrize("kind", OTHER_WAN)
@pytest.mark.parametrize("in_channels", [16, 36])
def test_another_kind_of_wan_belongs_to_comfyuis_loader(kind, in_channels):
    text = refusal({**stock(in_channels=in_channels), **names(*OTHER_WAN[kind])})
    assert f"is Wan {kind};" in text and "use Load Diffusion Model" in text


def test_an_unknown_kind_of_wan_belongs_to_comfyuis_loader():
    text = refusal({**stock(), **names("new_adapter.weight")})
    assert "1 unexpected: new_adapter.weight." in text and "load it with Load Diffusion Model" in text


def test_an_odd_width_is_refused():
    assert "300 wide, which is no multiple of 128" in refusal(stock(dim=300))


CAMERA = {"cam": 1536, "act": 1792}


def lingbot(control="cam", **sizes):
    """A camera model, listed by the test support."""
    tensors = meta(support.shapes(control, **({"dim": 256, "ffn_dim": 512, "layers": 3} | sizes)))
    dim = sizes.get("dim", 256)
    return tensors | {"patch_embedding.weight": torch.empty(dim, 36, 1, 2, 2, device="meta")}


@pytest.mark.parametrize("control", CAMERA)
def test_lingbot_world_is_known_by_its_control(control):
    tensors = lingbot(control, dim=5120, ffn_dim=13824, layers=40)
    found, same = identify(NAME, tensors)
    assert found == spec(5120, 13824, 40, 36, camera=control) and same == tensors
    assert found.task == "I2V" and found.describe() == f"LingBot-World {control} I2V 14B"
    assert expected_shapes(found)["patch_embedding_wancamctrl.weight"] == (5120, CAMERA[control])
    stock_count = len(expected_shapes(dataclasses.replace(found, camera="")))
    assert len(tensors) - stock_count == 2 * 163  # published: 163 linears more than Wan 2.2 A14B, each with a bias
    if control == "cam":
        # Twice as many bytes is the `original_bytes` of the published quantisation: 37,088,665,728.
        assert sum(tensor.numel() for tensor in tensors.values()) == 18_544_332_864


NOT_LINGBOT = {
    "action modules": (
        {**lingbot(), **names("blocks.0.action_model.proj.weight")},
        "1 unexpected: blocks.0.action_model",
    ),
    "another control": (
        {**lingbot(), "patch_embedding_wancamctrl.weight": torch.empty(256, 1024, device="meta")},
        "camera control of 1024 channels, and LingBot-World has 1536 (cam) or 1792 (act)",
    ),
    "no image": (
        {**lingbot(), "patch_embedding.weight": torch.empty(256, 16, 1, 2, 2, device="meta")},
        "16 input and 16 output channels",
    ),
    "a control that is no matrix": (
        {**lingbot(), "patch_embedding_wancamctrl.weight": torch.empty(256, 96, 4, 4, device="meta")},
        "patch_embedding_wancamctrl.weight has the shape [256, 96, 4, 4]",
    ),
    "no control embedding": (
        without(lingbot(), "patch_embedding_wancamctrl"),
        "part of a Wan model: patch_embedding_wancamctrl.weight is missing",
    ),
    "one injector missing": (
        without(lingbot(), "blocks.1.cam_scale_layer"),
        "2 missing: blocks.1.cam_scale_layer.weight",
    ),
}


@pytest.mark.parametrize("tensors, said", NOT_LINGBOT.values(), ids=NOT_LINGBOT)
def test_what_only_looks_like_lingbot_world_is_refused_by_name(tensors, said):
    assert said in refusal(tensors)


@pytest.fixture
def int8():
    return checkpoints.upstream_state_dict(1, dim=256, ffn_dim=384, layers=1, int8=True)


def test_int8_is_seen_from_the_tensors(int8):
    spec, tensors = identify("file", int8)
    assert spec.int8 and spec.turbo and not spec.sla
    assert spec.describe() == "TurboWan T2V 1 layers of width 256 int8"
    assert tensors["blocks.0.ffn.2.weight"] is int8["blocks.0.ffn.2.int8_weight"]
    assert tensors["blocks.0.ffn.2.weight_scale"].shape == (2, 3)


DAMAGED_INT8 = {
    "no scale": (
        {"blocks.0.ffn.2.scale": None},
        "1 missing: blocks.0.ffn.2.weight_scale. It looks like int8 weights without",
    ),
    "scale of another shape": ({"blocks.0.ffn.2.scale": torch.ones(2, 2)}, "weight_scale [2, 2] instead of [2, 3]"),
    "scale per row": ({"blocks.0.ffn.2.scale": torch.ones(256)}, "weight_scale [256] instead of [2, 3]"),
    "NaN scale": (
        {"blocks.0.ffn.2.scale": torch.full((2, 3), torch.nan)},
        "1 with scales that are not positive numbers: ",
    ),
    "zero scale": ({"blocks.0.ffn.2.scale": torch.zeros(2, 3)}, "1 with scales that are not positive numbers: "),
    "scale in half": (
        {"blocks.0.ffn.2.scale": torch.ones(2, 3).half()},
        "of a wrong type: blocks.0.ffn.2.weight_scale float16",
    ),
    "codes in uint8": (
        {"blocks.0.ffn.2.int8_weight": torch.zeros(256, 384, dtype=torch.uint8)},
        "of a wrong type: blocks.0.ffn.2.weight uint8",
    ),
    "another size": (
        {"blocks.0.ffn.2.int8_weight": torch.zeros(256, 256, dtype=torch.int8)},
        "blocks.0.ffn.2.weight [256, 256] instead of [256, 384]",
    ),
    "an int8 bias": ({"blocks.0.ffn.2.bias": torch.zeros(256, dtype=torch.int8)}, "blocks.0.ffn.2.bias int8"),
    "an int8 embedding": (
        {
            "text_embedding.2.weight": torch.zeros(256, 256, dtype=torch.int8),
            "text_embedding.2.weight_scale": torch.ones(2, 2),
        },
        "of a wrong type: text_embedding.2.weight int8",
    ),
    "cut": ({"head.modulation": None}, "head.modulation is missing"),
}


@pytest.mark.parametrize("changes, message", DAMAGED_INT8.values(), ids=DAMAGED_INT8)
def test_a_damaged_int8_file_says_what_is_wrong(int8, changes, message):
    damaged = {key: value for key, value in (int8 | changes).items() if value is not None}
    assert message in refusal(damaged)

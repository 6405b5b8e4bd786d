"""A file is what its tensors say: which Wan model it is, upstream's int8 and LingBot-World included."""

import dataclasses

import comfy.ldm.wan.model
import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.outlines import NAME, camera_model, names, refusal, spec, stock, turbo, without
from td_pack.turbo_core.checkpoint.identify import identify
from td_pack.turbo_core.checkpoint.layout import expected_shapes
from td_pack.turbo_core.checkpoint.metadata import METADATA_KEY

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
def test_the_tensors_of_comfyuis_network_are_stock_wan(sizes, task):
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
    tensors = dict(network.state_dict())
    found, same = identify(NAME, tensors)
    assert found == known and not found.turbo and not found.sla
    assert found.task == task
    assert same == tensors
    assert {key: tuple(t.shape) for key, t in tensors.items()} == expected_shapes(known)


@pytest.mark.parametrize("field", ["turbo", "sla"])
def test_our_converters_metadata_or_proj_l_marks_a_turbo_file(field):
    tensors = stock(sla=field == "sla")
    found, _ = identify(NAME, tensors, {METADATA_KEY: "{}"} if field == "turbo" else {"format": "pt"})
    assert found == dataclasses.replace(spec(turbo=True), sla=field == "sla")


def test_comfyuis_own_quantization_is_taken():
    layer = "blocks.0.ffn.0"
    side = names(f"{layer}.comfy_quant", f"{layer}.weight_scale", f"{layer}.weight_codebook", f"{layer}.input_scale")
    packed = {f"{layer}.weight": torch.empty(512, 128, device="meta")}
    assert identify(NAME, {**stock(), **side, **packed})[0] == spec()
    del side[f"{layer}.comfy_quant"]
    listed = ", ".join(f"{layer}.{name}" for name in ("weight_scale", "weight_codebook", "input_scale"))
    assert f"3 unexpected: {listed}" in refusal({**stock(), **side})


def test_an_attention_that_a_file_chooses_is_left_to_comfyui():
    chosen = names("blocks.0.self_attn.comfy_attention.config", "blocks.1.cross_attn.comfy_attention.config")
    assert identify(NAME, {**stock(), **chosen})[0] == spec()


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


CAMERA = {"cam": 1536, "act": 1792}


@pytest.mark.parametrize("control", CAMERA)
def test_lingbot_world_is_known_by_its_control(control):
    tensors = camera_model(control, dim=5120, ffn_dim=13824, layers=40)
    found, same = identify(NAME, tensors)
    assert found == spec(5120, 13824, 40, 36, camera=control) and same == tensors
    assert found.task == "I2V" and found.describe() == f"LingBot-World {control} I2V 14B"
    assert expected_shapes(found)["patch_embedding_wancamctrl.weight"] == (5120, CAMERA[control])
    stock_count = len(expected_shapes(dataclasses.replace(found, camera="")))
    assert len(tensors) - stock_count == 2 * 163  # published: 163 linears more than Wan 2.2 A14B, each with a bias
    if control == "cam":
        # Twice as many bytes is the `original_bytes` of the published quantization: 37,088,665,728.
        assert sum(tensor.numel() for tensor in tensors.values()) == 18_544_332_864


NOT_LINGBOT = {
    "action modules": (
        {**camera_model(), **names("blocks.0.action_model.proj.weight")},
        "1 unexpected: blocks.0.action_model",
    ),
    "another control": (
        {**camera_model(), "patch_embedding_wancamctrl.weight": torch.empty(256, 1024, device="meta")},
        "camera control of 1024 channels, and LingBot-World has 1536 (cam) or 1792 (act)",
    ),
    "no image": (
        {**camera_model(), "patch_embedding.weight": torch.empty(256, 16, 1, 2, 2, device="meta")},
        "16 input channels, none of them for an image",
    ),
    "a control that is no matrix": (
        {**camera_model(), "patch_embedding_wancamctrl.weight": torch.empty(256, 96, 4, 4, device="meta")},
        "patch_embedding_wancamctrl.weight has the shape [256, 96, 4, 4]",
    ),
    "no control embedding": (
        without(camera_model(), "patch_embedding_wancamctrl"),
        "part of a Wan model: patch_embedding_wancamctrl.weight is missing",
    ),
    "one injector missing": (
        without(camera_model(), "blocks.1.cam_scale_layer"),
        "2 missing: blocks.1.cam_scale_layer.weight",
    ),
}


@pytest.mark.parametrize("tensors, said", NOT_LINGBOT.values(), ids=NOT_LINGBOT)
def test_what_only_looks_like_lingbot_world_is_refused_by_name(tensors, said):
    assert said in refusal(tensors)

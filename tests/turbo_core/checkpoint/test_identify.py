"""A file is what its tensors say: which Wan model it is."""

import dataclasses

import comfy.ldm.wan.model
import pytest
import torch
from td_pack.tests.support.outlines import NAME, names, refusal, spec, stock, turbo
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

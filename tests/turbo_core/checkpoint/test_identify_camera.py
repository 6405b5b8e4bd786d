"""LingBot-World models are known by their camera control, and what only looks like one is refused."""

import dataclasses

import pytest
import torch
from td_pack.tests.support.outlines import NAME, camera_model, names, refusal, spec, without
from td_pack.turbo_core.checkpoint.identify import identify
from td_pack.turbo_core.checkpoint.layout import expected_shapes

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
        "16 input and 16 output channels",
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

"""The tensors decide what a file is: metadata that says something else, or nothing that can be read, is one
sentence."""

import json

import pytest
import torch
from td_pack.tests.support import checkpoints, hostile
from td_pack.turbo_core.checkpoint.metadata import METADATA_KEY
from td_pack.turbo_core.checkpoint.read import read_safetensors
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.errors import CheckpointError
from td_pack.turbo_core.host.load import load_model

SIZES = dict(dim=128, ffn_dim=256, layers=1)
LAYER = "blocks.0.ffn.0"


@pytest.fixture(scope="module")
def tensors():
    return checkpoints.upstream_state_dict(1, sla=True, **SIZES)


def config(**transformer) -> dict[str, str]:
    return {"config": json.dumps({"transformer": transformer})}


def quantization(layers: object) -> dict[str, str]:
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}


CONTRADICTION = "metadata that contradicts its tensors"
UNREADABLE = "metadata that cannot be read"
WRONG = {
    "other layers": (config(num_layers=2), f"{CONTRADICTION} .config: num_layers is 2, and the tensors say 1"),
    "40 GB": (config(dim=100000), f"{CONTRADICTION} .config: dim is 100000, and the tensors say 128"),
    "a text for a number": (config(ffn_dim="x" * 99999), f"{CONTRADICTION} .config: ffn_dim is x"),
    "another text width": (config(text_dim=64), f"{CONTRADICTION} .config: text_dim"),
    "another network": (config(image_model="ltxv"), f"{CONTRADICTION} .config: image_model"),
    "other patches": (config(patch_size=[1, 4, 4]), f"{CONTRADICTION} .config: patch_size"),
    **{
        f"{key} {content[:4]}": ({key: content}, f"{UNREADABLE} .{key}")
        for key in ("config", "_quantization_metadata", METADATA_KEY)
        for content in ("{", "[" * 100_000, "[1]", '"a"', " " * (5 << 20), "")
    },
    "no layers": ({"_quantization_metadata": "{}"}, UNREADABLE),
    "a list of layers": (quantization([LAYER]), UNREADABLE),
    "a layer that is a name": (quantization({LAYER: "float8_e4m3fn"}), UNREADABLE),
    "a layer that is not there": (
        quantization({"blocks.0.ffn.9": {"format": "float8_e4m3fn"}}),
        "1 unexpected: blocks.0.ffn.9",
    ),
    "a norm": (quantization({"blocks.0.norm3": {"format": "float8_e4m3fn"}}), "1 unexpected: blocks.0.norm3"),
    **{
        f"format {layer}": (quantization({LAYER: layer}), f"1 unreadable: {LAYER}.comfy_quant")
        for layer in ({"format": 3}, {"format": "int8_block"}, {"format": "nf4"}, {"format": "x", "params": [1]})
    },
    "no format": (quantization({LAYER: {}}), f"1 unreadable: {LAYER}.comfy_quant"),
    "a format of no name": (quantization({LAYER: {"format": []}}), f"1 unreadable: {LAYER}.comfy_quant"),
    "a group that is a text": (quantization({LAYER: {"format": "x", "convrot_groupsize": "a"}}), "1 unreadable"),
    "16 bits called 8": (quantization({LAYER: {"format": "float8_e4m3fn"}}), f"1 missing: {LAYER}.weight_scale"),
    "a format to come": (
        quantization({LAYER: {"format": "int1_x"}}),
        "quantized in a way that this ComfyUI cannot load",
    ),
}


@pytest.mark.parametrize("metadata, said", WRONG.values(), ids=WRONG)
def test_metadata_that_disagrees_is_one_sentence(metadata, said, tensors, tmp_path):
    path = checkpoints.write_safetensors(tmp_path / "m.safetensors", tensors, metadata)
    with hostile.limits(), pytest.raises(CheckpointError, match=said) as error:
        load_model(str(path))
    text = str(error.value)
    assert text.startswith("m.safetensors ") and text.endswith(".") and len(text) < 2001


HARMLESS = {
    "ComfyUI's own": config(num_layers=1, dim=128, in_dim=16, text_dim=4096, patch_size=[1, 2, 2], eps=1e-06),
    "settings of another tool": {"config": '{"optimizer": "adamw"}', "modelspec.title": "x"},
    "unknown settings": config(color="blue"),
    "no transformer": {"config": '{"transformer": 3}'},
    "ours": {METADATA_KEY: '{"turbo": true, "weights": "keep"}'},
}


@pytest.mark.parametrize("metadata", HARMLESS.values(), ids=HARMLESS)
def test_other_metadata_changes_nothing_and_is_not_carried_along(metadata, tensors, tmp_path):
    path = checkpoints.write_safetensors(tmp_path / "m.safetensors", tensors, metadata)
    assert (
        load_model(str(path)).model.spec
        == load_model(str(checkpoints.write_pth(tmp_path / "m.pth", tensors))).model.spec
    )
    convert(Request(path, tmp_path / "new.safetensors"))
    _, kept = read_safetensors(tmp_path / "new.safetensors")
    assert set(kept) == {METADATA_KEY, *metadata} - {"config"} and json.loads(kept[METADATA_KEY])["version"]


MARKED = {
    "of another type": ({f"{LAYER}.weight": torch.zeros(256, 128)}, f"1 of a wrong type: {LAYER}.weight float32"),
    "of another shape": (
        {f"{LAYER}.weight": torch.zeros(256, 64, dtype=torch.int8)},
        r"1 wrongly shaped: .*\[256, 64\]",
    ),
    "with other scales": ({f"{LAYER}.weight_scale": torch.zeros(2)}, rf"1 wrongly shaped: {LAYER}.weight_scale \[2\]"),
    "with integer scales": ({f"{LAYER}.weight_scale": torch.ones(1, dtype=torch.int32)}, "1 of a wrong type: .* int32"),
    "without scales": ({f"{LAYER}.weight_scale": None}, f"1 missing: {LAYER}.weight_scale"),
    "marked in another type": ({f"{LAYER}.comfy_quant": torch.zeros(9)}, f"1 unreadable: {LAYER}.comfy_quant"),
}


@pytest.mark.parametrize("changes, said", MARKED.values(), ids=MARKED)
def test_a_quantized_layer_is_as_its_mark_says(changes, said, tensors, tmp_path):
    mark = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    layer = {f"{LAYER}.weight": torch.zeros(256, 128, dtype=torch.int8), f"{LAYER}.weight_scale": torch.ones(1)}
    whole = tensors | layer | {f"{LAYER}.comfy_quant": mark}
    load_model(str(checkpoints.write_safetensors(tmp_path / "whole.safetensors", whole)))
    broken = {name: value for name, value in (whole | changes).items() if value is not None}
    with pytest.raises(CheckpointError, match=said):
        load_model(str(checkpoints.write_safetensors(tmp_path / "m.safetensors", broken)))

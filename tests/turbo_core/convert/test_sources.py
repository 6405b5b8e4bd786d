"""Converting models in several files and 4-bit models to one file."""

import hashlib
import json

import pytest
import torch
from td_pack.tests.support import checkpoints, lingbot
from td_pack.turbo_core.checkpoint.identify import identify
from td_pack.turbo_core.checkpoint.metadata import METADATA_KEY
from td_pack.turbo_core.checkpoint.read import read, read_safetensors
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.errors import TurboError

BLOCK_LINEARS = 2 * (4 + 4 + 2 + 4)  # of two blocks: two attentions, feed-forward, camera


@pytest.fixture(scope="module")
def packed():
    """A camera model; 300 columns, so that rows do not end where blocks do."""
    return lingbot.packed(lingbot.state_dict(5, ffn_dim=300))


@pytest.fixture(scope="module")
def path(packed, tmp_path_factory):
    return checkpoints.write_safetensors(tmp_path_factory.mktemp("m") / "nf4.safetensors", packed)


def converted(source, target, weights: str, **more) -> dict[str, torch.Tensor]:
    convert(Request(source, target, weights, **more))
    return read_safetensors(target)[0]


def test_parts_become_one_file(tmp_path):
    sd = lingbot.state_dict(5)
    index = lingbot.write_shards(tmp_path / "parts", sd, 4)
    seen = []
    target = tmp_path / "whole.safetensors"
    convert(Request(index, target), lambda stage, done, total: seen.append((done, total)))
    tensors, metadata = read_safetensors(target)
    assert tensors.keys() == sd.keys() and all(torch.equal(tensors[key], sd[key]) for key in sd)
    parts = sorted(index.parent.glob("*.safetensors"))
    content = b"".join(part.read_bytes() for part in parts)
    assert json.loads(metadata[METADATA_KEY])["sources"]["model"] == {
        "name": index.name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert seen[-1][0] == seen[-1][1]


def test_a_part_is_not_replaced_by_the_whole(tmp_path):
    index = lingbot.write_shards(tmp_path, lingbot.state_dict(5, layers=1), 2)
    part = next(tmp_path.glob("*-00002-of-*"))
    before = part.read_bytes()
    with pytest.raises(TurboError, match="is the model itself"):
        convert(Request(index, part, overwrite=True))
    assert part.read_bytes() == before


def test_keep_keeps_4_bit_weights(path, packed, tmp_path):
    tensors = converted(path, tmp_path / "kept.safetensors", "keep")
    assert tensors.keys() == packed.keys()
    assert all(torch.equal(tensors[key].flatten(), packed[key].flatten()) for key in packed)
    assert identify("kept", tensors)[0] == identify("nf4", packed)[0]


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("blocksize", [64, 4096])
def test_bf16_is_what_bitsandbytes_unpacks(double, blocksize, tmp_path):
    sd = lingbot.state_dict(5, ffn_dim=300, layers=1)
    for key in [key for key in sd if lingbot.is_linear(key, sd[key])]:
        sd |= lingbot.pack(key, sd[key], double=double, blocksize=blocksize)
    weights = [key.removesuffix(".quant_map") for key in sd if key.endswith(".weight.quant_map")]
    source = checkpoints.write_safetensors(tmp_path / "nf4.safetensors", sd)
    tensors = converted(source, tmp_path / "bf16.safetensors", "bf16")
    assert not [key for key in tensors if tensors[key].dtype != torch.bfloat16]
    for key in weights:
        assert torch.equal(tensors[key], lingbot.unpack(sd, key, torch.float32).bfloat16()), key


@pytest.mark.parametrize("weights", ["int8_block", "int8_rowwise", "fp8_e4m3fn"])
def test_other_weights_leave_none_in_4_bits(path, weights, tmp_path):
    tensors = converted(path, tmp_path / f"{weights}.safetensors", weights)
    spec, _ = identify("file", *read(tmp_path / f"{weights}.safetensors"))
    assert spec.camera == "cam" and not spec.four_bit and not spec.turbo
    assert sum(key.endswith(".weight_scale") for key in tensors) == BLOCK_LINEARS
    assert tensors["head.head.weight"].dtype == torch.bfloat16


def test_merging_into_4_bit_weights_is_refused(path, tmp_path):
    changes = checkpoints.lora(layers={"blocks.0.self_attn.q": (256, 256)})
    lora = checkpoints.write_safetensors(tmp_path / "lora.safetensors", changes)
    with pytest.raises(TurboError, match="4-bit weights, in which what is merged would be lost.*set weights to bf16"):
        convert(Request(path, tmp_path / "merged.safetensors", lora=lora))
    assert not (tmp_path / "merged.safetensors").exists()
    convert(Request(path, tmp_path / "merged.safetensors", "bf16", lora=lora))

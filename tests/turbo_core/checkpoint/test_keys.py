"""Upstream's names and shapes become ComfyUI's, whatever a trainer or a saver wrapped around them."""

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.outlines import turbo
from td_pack.turbo_core.checkpoint.keys import PATCH_EMBEDDING, strip_wrappers, to_comfyui
from td_pack.turbo_core.checkpoint.read import read
from td_pack.turbo_core.errors import CheckpointError


def wrapped_blocks(key):
    """Names as torch's activation checkpointing leaves them: the wrapper sits inside each block."""
    head, *rest = key.split(".", 2)
    return f"blocks.{rest[0]}._checkpoint_wrapped_module.{rest[1]}" if head == "blocks" else key


PREFIXES = [
    *("", "net.", "net_ema.", "model.diffusion_model.", "diffusion_model.", "model.", "module.", "_orig_mod."),
    *("module.net.", "_orig_mod.module.", "net._orig_mod.", "_fsdp_wrapped_module.model."),
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("infix", [lambda key: key, wrapped_blocks], ids=["plain", "checkpoint_wrapped"])
def test_wrappers_come_off(prefix, infix):
    tensors = turbo(layers=2)
    stripped = strip_wrappers({prefix + infix(key): tensor for key, tensor in tensors.items()})
    assert list(stripped) == list(tensors)
    assert all(stripped[key] is tensor for key, tensor in tensors.items())


def test_nothing_stays_nothing():
    assert strip_wrappers({}) == {}


SPELLINGS = {
    "blocks.0.self_attn.q.weight": "blocks.0._checkpoint_wrapped_module.self_attn.q.weight",
    "net._orig_mod.blocks.0.modulation": "net.blocks.0.modulation",
    "blocks.0.ffn.0.scale": "blocks.0.ffn.0.weight_scale",
    "blocks.0.ffn.0.weight": "blocks.0.ffn.0.int8_weight",
    "blocks.0.ffn.0.scale_weight": "blocks.0.ffn.0.weight_scale",
}


@pytest.mark.parametrize("name, other", SPELLINGS.items())
def test_two_names_for_one_tensor_are_refused(name, other, tmp_path):
    path = checkpoints.write_safetensors(tmp_path / "m.safetensors", {name: torch.zeros(1), other: torch.ones(1)})
    with pytest.raises(CheckpointError, match="m.safetensors holds one tensor under two names") as error:
        read(path)
    assert name in str(error.value) and other in str(error.value)


@pytest.mark.parametrize("channels", [16, 36])
def test_the_linear_patch_embedding_becomes_the_convolution_of_the_same_patches(channels):
    weight = torch.randn(8, channels * 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    converted = to_comfyui({PATCH_EMBEDDING: weight})[PATCH_EMBEDDING]
    assert converted.shape == (8, channels, 1, 2, 2)
    assert converted.data_ptr() == weight.data_ptr()
    video = torch.randn(1, channels, 3, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    patches = video.unfold(3, 2, 2).unfold(4, 2, 2).permute(0, 2, 3, 4, 1, 5, 6).flatten(4)  # (channel, h, w) inside
    want = (patches @ weight.T).permute(0, 4, 1, 2, 3)
    got = torch.nn.functional.conv3d(video, converted, stride=(1, 2, 2))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)  # float64 sums in another order


def test_other_tensors_and_the_given_dictionary_stay():
    tensors = {**turbo(layers=2), PATCH_EMBEDDING: torch.empty(256, 64, device="meta")}
    converted = to_comfyui(tensors)
    assert list(converted) == list(tensors) and tensors[PATCH_EMBEDDING].ndim == 2
    assert all(converted[key] is tensor for key, tensor in tensors.items() if key != PATCH_EMBEDDING)


def test_a_patch_embedding_of_no_whole_patches_is_refused():
    with pytest.raises(CheckpointError, match=r"patch_embedding.weight is \[128, 66\]"):
        to_comfyui({PATCH_EMBEDDING: torch.empty(128, 66, device="meta")})

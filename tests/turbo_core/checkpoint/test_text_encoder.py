import pytest
import torch
from td_pack.tests.support import text_encoders
from td_pack.turbo_core.checkpoint.text_encoder import encoder_sizes
from td_pack.turbo_core.errors import CheckpointError


def meta(width: int = 4096, heads: int = 64, head_dim: int = 64, vocabulary: int = 256384) -> dict[str, torch.Tensor]:
    named = text_encoders.shapes(width, heads, head_dim, vocabulary)
    sd = {key: torch.empty(shape, device="meta") for key, shape in named.items()}
    return sd | {"spiece_model": torch.zeros(9, dtype=torch.uint8)}


def test_the_published_sizes_are_read_from_the_tensors():
    # comfy/text_encoders/umt5_config_xxl.json
    assert encoder_sizes("f", meta()) == {"vocab_size": 256384, "d_model": 4096, "num_heads": 64, "d_kv": 64}
    assert encoder_sizes("f", meta(vocabulary=32000))["vocab_size"] == 32000


def without(*parts: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in meta().items() if not any(part in key for part in parts)}


def with_ffn(width: int) -> dict[str, torch.Tensor]:
    wide = {key: torch.empty(width, 4096, device="meta") for key in meta() if ".wi_" in key}
    return meta() | wide


BAD = {
    "umT5 in Wan's own format": {
        "token_embedding.weight": torch.zeros(1),
        "blocks.0.attn.q.weight": torch.zeros(1),
    },
    "is not a T5 text encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(1)},
    "of other models, not umT5": without(
        *(f"block.{i}.layer.0.SelfAttention.relative_attention_bias" for i in range(1, 24))
    ),
    "lacks its tokenizer": without("spiece_model"),
    "10 tensors are missing, the first is encoder.block.7.layer.0.layer_norm.weight": without("block.7."),
    "of another size than XXL": with_ffn(2048),
}


@pytest.mark.parametrize(
    "key",
    ["shared", "block.0.layer.0.SelfAttention.relative_attention_bias", "block.0.layer.0.SelfAttention.q"]
    + ["block.0.layer.1.DenseReluDense.wi_0"],
)
@pytest.mark.parametrize("shape", [(), (5,), (0, 64), (64, 0), (64, 64, 1)])
def test_a_tensor_of_no_size_is_damage(key, shape):
    key = f"{'' if key == 'shared' else 'encoder.'}{key}.weight"
    with pytest.raises(CheckpointError, match=f"f is damaged: {key} has the shape"):
        encoder_sizes("f", meta() | {key: torch.empty(shape, device="meta")})


@pytest.mark.parametrize("message", BAD)
def test_a_file_that_is_no_encoder_for_wan_says_what_it_is(message):
    with pytest.raises(CheckpointError, match=message) as caught:
        encoder_sizes("file.safetensors", BAD[message])
    assert str(caught.value).startswith("file.safetensors ") and "\n" not in str(caught.value)

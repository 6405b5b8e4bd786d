"""What a text encoder file must hold to encode prompts for Wan: umT5-XXL with its tokenizer, as ComfyUI repackaged
it."""

import torch

from ..errors import CheckpointError

LAYERS, FFN_WIDTH = 24, 10240  # by which ComfyUI tells the XXL size from others
TOKENIZER = "spiece_model"
_TABLE = "shared.weight"
_BIAS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
_BLOCK = (
    "layer.0.layer_norm",
    *(f"layer.0.SelfAttention.{name}" for name in ("q", "k", "v", "o", "relative_attention_bias")),
    "layer.1.layer_norm",
    *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
)
# What the sizes are read from: matrices that must not be empty
_SIZED = (
    _TABLE,
    _BIAS.format(0),
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "encoder.block.0.layer.1.DenseReluDense.wi_0.weight",
)
_GET = "use umt5_xxl_fp8_e4m3fn_scaled.safetensors or umt5_xxl_fp16.safetensors from Comfy-Org's repackaged files"


def encoder_sizes(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, int]:
    """The sizes of the encoder in a file, under the names of the T5 configuration. Some may differ from the published
    file's, for example those of a trimmed vocabulary. Raises CheckpointError for a file that is not a umT5-XXL encoder,
    and for an incomplete one. `name` is for the message only."""
    if "blocks.0.attn.q.weight" in tensors and "token_embedding.weight" in tensors:
        raise CheckpointError(
            f"{name} is umT5 in Wan's own format, without the tokenizer ComfyUI needs in the file; {_GET}."
        )
    if _BIAS.format(0) not in tensors or _TABLE not in tensors:
        raise CheckpointError(f"{name} is not a T5 text encoder; {_GET}.")
    if _BIAS.format(1) not in tensors:  # T5 has the bias in its first block only
        raise CheckpointError(f"{name} is a T5 text encoder of other models, not umT5; {_GET}.")
    missing = [key for key in _expected() if key not in tensors]
    misshapen = [key for key in _SIZED if key in tensors and (tensors[key].ndim != 2 or not tensors[key].numel())]
    if misshapen:
        raise CheckpointError(
            f"{name} is damaged: {misshapen[0]} has the shape {list(tensors[misshapen[0]].shape)}; download it again."
        )
    if not missing and tensors["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0] != FFN_WIDTH:
        raise CheckpointError(f"{name} is a umT5 text encoder of another size than XXL; {_GET}.")
    if missing:
        raise CheckpointError(
            f"{name} is not a complete umT5-XXL text encoder: {len(missing)} tensors are missing, the first is "
            f"{missing[0]}; "
            "download it again."
        )
    if TOKENIZER not in tensors:
        raise CheckpointError(f"{name} lacks its tokenizer (the tensor {TOKENIZER}); {_GET}.")
    vocabulary, width = tensors[_TABLE].shape
    heads = tensors[_BIAS.format(0)].shape[1]
    head_dim = tensors["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // heads
    return {"vocab_size": vocabulary, "d_model": width, "num_heads": heads, "d_kv": head_dim}


def _expected() -> list[str]:
    blocks = [f"encoder.block.{i}.{part}.weight" for i in range(LAYERS) for part in _BLOCK]
    return [_TABLE, *blocks, "encoder.final_layer_norm.weight"]

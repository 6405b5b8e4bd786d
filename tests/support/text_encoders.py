"""Random umT5 encoders in the layout of ComfyUI's repackaged file, of any width and vocabulary, and their tokenizer."""

import io
from pathlib import Path

import numpy as np
import sentencepiece
import torch

from . import checkpoints

LAYERS, FFN_WIDTH, BUCKETS = 24, 10240, 32  # fixed: by them ComfyUI knows the XXL size
SMALL = "small_umt5.safetensors"
SMALL_T2V, SMALL_HIGH, SMALL_LOW = "small_text_t2v.pth", "small_text_high.pth", "small_text_low.pth"
SMALL_WIDTH = 8
PROMPT = "a red disc moves to the left across a quiet blue lake while the camera slowly follows"


def tokenizer(vocabulary: int = 40) -> torch.Tensor:
    """A sentencepiece model with umT5's special tokens, trained on a sentence, as the bytes a file holds."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([PROMPT] * 8),
        model_writer=model,
        vocab_size=vocabulary,
        model_type="char",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return torch.from_numpy(np.frombuffer(model.getvalue(), np.uint8).copy())


def shapes(width: int, heads: int, head_dim: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Every weight of the encoder with its shape."""
    inner = heads * head_dim
    named = {"shared": (vocabulary, width), "encoder.final_layer_norm": (width,)}
    for layer in (f"encoder.block.{i}.layer" for i in range(LAYERS)):
        attention, ffn = f"{layer}.0.SelfAttention", f"{layer}.1.DenseReluDense"
        named |= {f"{attention}.{name}": (inner, width) for name in "qkv"}
        named |= {f"{attention}.o": (width, inner), f"{attention}.relative_attention_bias": (BUCKETS, heads)}
        named |= {f"{layer}.{i}.layer_norm": (width,) for i in range(2)}
        named |= {f"{ffn}.{name}": (FFN_WIDTH, width) for name in ("wi_0", "wi_1")} | {f"{ffn}.wo": (width, FFN_WIDTH)}
    return {f"{name}.weight": shape for name, shape in named.items()}


def small_state_dict(seed: int = 1, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """An encoder 8 wide; the values depend on the seed."""
    spiece = tokenizer()
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=spiece.numpy().tobytes()).get_piece_size()
    sd = {"spiece_model": spiece}
    for key, shape in shapes(SMALL_WIDTH, 2, SMALL_WIDTH // 2, vocabulary).items():
        value = checkpoints.draw(seed, key, shape)
        sd[key] = (1 + 0.1 * value if "norm" in key else value / shape[-1] ** 0.5).to(dtype)
    return sd


def write_small(models_dir: Path, name: str = SMALL, seed: int = 1) -> Path:
    """A small encoder file of about 12 MB in the models folder."""
    return checkpoints.write_safetensors(models_dir / "text_encoders" / name, small_state_dict(seed))


def write_small_models(models_dir: Path) -> None:
    """The small encoder and tiny diffusion models that take its text: T2V with SLA, and I2V's two experts."""
    write_small(models_dir)
    sizes = {SMALL_T2V: {"sla": True}, SMALL_HIGH: {"in_channels": 36}, SMALL_LOW: {"in_channels": 36}}
    for seed, (name, size) in enumerate(sizes.items(), 51):
        sd = checkpoints.upstream_state_dict(seed, **size)
        sd["text_embedding.0.weight"] = sd["text_embedding.0.weight"][:, :SMALL_WIDTH].contiguous()
        checkpoints.write_pth(models_dir / "diffusion_models" / name, sd)

"""The TurboWan network as a function of a checkpoint's tensors, written for training on a CPU: batches, bfloat16,
autograd.

Names and shapes are upstream's (`checkpoints.shapes`). The pack's own network must give the same (a test compares)."""

import math

import torch
import torch.nn.functional as F

from ...support import checkpoints

HEAD = checkpoints.HEAD_DIM
BLOCK_Q, BLOCK_K = 128, 64  # tokens in the blocks of sparse-linear attention
EPS = 1e-6
Weights = dict[str, torch.Tensor]


def initial(dim: int, ffn_dim: int, layers: int, in_channels: int, seed: int) -> Weights:
    """Random weights from which training starts; every block starts close to the identity."""
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in checkpoints.shapes(dim, ffn_dim, layers, in_channels, sla=False).items():
        value = torch.randn(shape, generator=random) / shape[-1] ** 0.5
        if name.endswith((".o.weight", "ffn.2.weight")):
            value *= 0.3
        elif name.startswith(("head.head", "time_projection")):
            value *= 0.1
        if name.endswith((*checkpoints.NEAR_ONE,)):
            value = torch.ones(shape)
        elif name.endswith("bias"):
            value = torch.zeros(shape)
        elif name.endswith("modulation"):
            value = torch.zeros(shape)
            if shape[1] == 6:
                value[:, [2, 5]] = 1
        weights[name] = value
    return weights


def velocity(
    w: Weights,
    x: torch.Tensor,
    t: torch.Tensor,
    text: torch.Tensor,
    key_blocks: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """x [B, C, T, H, W], t [B] in 0..1000, text [B, R, 4096] -> [B, 16, T, H, W], float32, computed in `dtype`.

    With `key_blocks`, self-attention is sparse-linear with that many blocks of 64 keys, else dense."""
    batch, _, frames, height, width = x.shape
    layers = 1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))
    dim = w["head.modulation"].shape[-1]
    turn = tuple(part.to(dtype) for part in rotation(frames, height // 2, width // 2))

    patches = x.unflatten(3, (-1, 2)).unflatten(5, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
    x = linear(w, "patch_embedding", patches.to(dtype))
    e = linear(w, "time_embedding.2", F.silu(linear(w, "time_embedding.0", sinusoid(t))))
    e0 = linear(w, "time_projection.1", F.silu(e)).unflatten(1, (6, dim))
    text = linear(w, "text_embedding.0", text.to(dtype))
    text = linear(w, "text_embedding.2", F.gelu(text, approximate="tanh"))
    for i in range(layers):
        x = block(w, f"blocks.{i}", x, e0, text, turn, key_blocks)
    shift, scale = (w["head.modulation"] + e[:, None]).to(x.dtype).chunk(2, 1)
    out = linear(w, "head.head", plain_norm(x) * (1 + scale) + shift).float()
    out = out.view(batch, frames, height // 2, width // 2, 2, 2, 16)
    return out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def block(w: Weights, name: str, x, e0, text, turn, key_blocks) -> torch.Tensor:
    parts = (w[f"{name}.modulation"] + e0).to(x.dtype).split(1, 1)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = parts
    y = plain_norm(x) * (1 + scale) + shift
    q, k = (rotate(heads(w, f"{name}.self_attn", n, y, halves=True), turn) for n in "qk")
    v = linear(w, f"{name}.self_attn.v", y).unflatten(2, (-1, HEAD)).transpose(1, 2)
    if key_blocks is None:
        y = attend(q, k, v)
    else:
        y = sparse(q, k, v, key_blocks) + linear(w, f"{name}.self_attn.attn_op.local_attn.proj_l", smooth(q, k, v))
    x = x + gate * linear(w, f"{name}.self_attn.o", y.transpose(1, 2).flatten(2))
    y = F.layer_norm(x, x.shape[-1:], w[f"{name}.norm3.weight"].to(x.dtype), w[f"{name}.norm3.bias"].to(x.dtype), EPS)
    q = heads(w, f"{name}.cross_attn", "q", y)
    k = heads(w, f"{name}.cross_attn", "k", text)
    v = linear(w, f"{name}.cross_attn.v", text).unflatten(2, (-1, HEAD)).transpose(1, 2)
    x = x + linear(w, f"{name}.cross_attn.o", attend(q, k, v).transpose(1, 2).flatten(2))
    y = linear(w, f"{name}.ffn.0", plain_norm(x) * (1 + ffn_scale) + ffn_shift)
    return x + ffn_gate * linear(w, f"{name}.ffn.2", F.gelu(y, approximate="tanh"))


def linear(w: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"].to(x.dtype), w[f"{name}.bias"].to(x.dtype))


def plain_norm(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def heads(w: Weights, attention: str, name: str, x: torch.Tensor, halves: bool = False) -> torch.Tensor:
    """A normalized query or key [B, heads, L, 128]. `halves`: the first elements of the rotated pairs, then the second,
    which leaves dot products as they are and is quicker to rotate."""
    weight, bias = w[f"{attention}.{name}.weight"], w[f"{attention}.{name}.bias"]
    gain = w[f"{attention}.norm_{name}.weight"]
    if halves:
        weight, bias, gain = (
            t.unflatten(0, (-1, HEAD // 2, 2)).transpose(1, 2).flatten(0, 2) for t in (weight, bias, gain)
        )
    x = F.linear(x, weight.to(x.dtype), bias.to(x.dtype))
    scale = (x.float().square().mean(-1, keepdim=True) + EPS).rsqrt()
    return (x * scale.to(x.dtype) * gain.to(x.dtype)).unflatten(2, (-1, HEAD)).transpose(1, 2)


def rotation(frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [L, 64] of Wan's rotary embedding over time, row and column."""
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (frames, height, width)), indexing="ij")
    axes = (HEAD - 4 * (HEAD // 6), 2 * (HEAD // 6), 2 * (HEAD // 6))
    angles = [
        position.flatten()[:, None] * 10000 ** (-torch.arange(0, n, 2, dtype=torch.float64) / n)
        for position, n in zip(grid, axes, strict=True)
    ]
    angles = torch.cat(angles, 1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    (a, b), (cos, sin) = x.chunk(2, -1), turn
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def sinusoid(t: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 256] float32."""
    angles = t.float()[:, None] * 10000 ** (-torch.arange(128) / 128)
    return torch.cat((angles.cos(), angles.sin()), 1)


def attend(q, k, v, added: torch.Tensor | float = 0) -> torch.Tensor:
    """Softmax attention. At this size on a CPU the products on their own are quicker than torch's fused operator."""
    scores = (q * (1 / math.sqrt(HEAD))) @ k.transpose(2, 3)
    return (scores if isinstance(added, (int, float)) else scores + added).softmax(-1) @ v


def sparse(q, k, v, key_blocks: int) -> torch.Tensor:
    """Softmax attention to the `key_blocks` blocks of keys whose mean fits the mean of a block of queries best."""
    length = q.shape[2]
    blocks_q, blocks_k = -(-length // BLOCK_Q), -(-length // BLOCK_K)
    with torch.no_grad():
        means = [
            torch.stack([part.float().mean(2) for part in x.split(size, 2)], 2)
            for x, size in ((q, BLOCK_Q), (k, BLOCK_K))
        ]
        best = (means[0] @ means[1].transpose(2, 3)).topk(key_blocks, -1).indices
        seen = torch.zeros(*q.shape[:2], blocks_q, blocks_k, dtype=torch.bool).scatter_(3, best, True)
        mask = seen.repeat_interleave(BLOCK_Q, 2)[:, :, :length].repeat_interleave(BLOCK_K, 3)[..., :length]
        hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, float("-inf"))
    return attend(q, k, v, hidden)


def smooth(q, k, v) -> torch.Tensor:
    """Linear attention with softmax over head_dim as the feature map."""
    q, k = q.float().softmax(-1), k.float().softmax(-1)
    return (q @ (k.transpose(2, 3) @ v.float()) / (q @ k.sum(2)[..., None] + 1e-5)).to(v.dtype)

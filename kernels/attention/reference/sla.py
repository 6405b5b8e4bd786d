"""Sparse-linear attention (SLA, arXiv 2509.24006) in plain torch, as TurboDiffusion runs it at inference.

    o = block_sparse_attention(q, k, v, block_map(q, k)) + proj(linear_attention(q, k, v))

Sequences are [B, L, H, D] (batch, tokens, heads, head_dim), strided views included; any L >= 1 and any float dtype.
This is the definition. Where no kernel runs, the same is computed in a few large operations (batched/sla.py), which
take the block map from here.
"""

import itertools

import torch
import torch.nn.functional as F
from einops import rearrange

from ..format import BLOCK_K, BLOCK_Q, selected_blocks

_CHUNK_ELEMENTS = 1 << 26  # elements of a temporary: 128 MB in bf16, 256 MB in float32


def _pool(x: torch.Tensor, block: int) -> torch.Tensor:
    """Mean over each block of tokens, in float32 at least: [B, L, H, D] -> [B, H, blocks, D]; a ragged last block
    counts its own tokens only."""
    length, compute = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    whole = length // block * block
    pooled = [rearrange(x[:, :whole], "b (n l) h d -> b n l h d", l=block).mean(2, dtype=compute)]
    if whole < length:
        pooled.append(x[:, whole:].mean(1, keepdim=True, dtype=compute))
    return rearrange(torch.cat(pooled, dim=1), "b n h d -> b h n d")


def block_map(
    q: torch.Tensor, k: torch.Tensor, topk: float, block_q: int = BLOCK_Q, block_k: int = BLOCK_K
) -> torch.Tensor:
    """The key blocks each query block attends to, by the dot product of block means.

    Returns int64 [B, H, query blocks, T] with T = `selected_blocks(...)`, ascending and unique. Equal scores go to the
    lower block, so the result does not depend on the device. Upstream also subtracts the mean key, which adds one
    constant per row and cannot change the order in float32."""
    scores = _pool(q, block_q) @ _pool(k, block_k).transpose(-1, -2)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    return order[..., : selected_blocks(k.shape[1], topk, block_k)].sort(dim=-1).values


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys of the listed blocks. `blocks` as from `block_map`; returns [B, L, H,
    D]."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    key_blocks, value_blocks = (x.split(block_k, dim=1) for x in (k, v))
    for item, head, i in itertools.product(*map(range, blocks.shape[:3])):
        listed = blocks[item, head, i].tolist()
        keys, values = (torch.cat([x[j][item, :, head] for j in listed]) for x in (key_blocks, value_blocks))
        rows = slice(i * block_q, (i + 1) * block_q)
        attended = F.scaled_dot_product_attention(q[item, rows, head][None], keys[None], values[None])
        out[item, rows, head] = attended[0]
    return out


def linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) sum(phi(k)) + 1e-5) with phi = softmax over head_dim, over all tokens.

    Computed in float32 (upstream rounds every step to bf16), returned in q's dtype as [B, L, H, D]."""
    b, length, h, d = q.shape
    out = torch.empty((b, length, h, d), dtype=q.dtype, device=q.device)
    compute = torch.promote_types(q.dtype, torch.float32)
    heads = max(1, _CHUNK_ELEMENTS // (length * d))
    for item in range(b):
        for start in range(0, h, heads):
            group = slice(start, start + heads)
            q_h, k_h, v_h = (rearrange(x[item, :, group], "l h d -> h l d") for x in (q, k, v))
            phi_q, phi_k = (x.softmax(-1, dtype=compute) for x in (q_h, k_h))
            key_values = phi_k.mT @ v_h.to(compute)
            normalizer = phi_q @ phi_k.sum(1).unsqueeze(-1) + 1e-5
            out[item, :, group] = rearrange(phi_q @ key_values / normalizer, "h l d -> l h d").to(q.dtype)
    return out


def sparse_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    proj_weight: torch.Tensor | None,
    proj_bias: torch.Tensor | None,
    *,
    topk: float,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """Both branches: the linear one through the learned projection [D, D] and bias [D], or the sparse one alone where
    these are None. Returns [B, L, H, D] in q's dtype."""
    out = block_sparse_attention(q, k, v, block_map(q, k, topk, block_q, block_k), block_q, block_k)
    if proj_weight is None:
        return out
    return out + F.linear(linear_attention(q, k, v), proj_weight, proj_bias)

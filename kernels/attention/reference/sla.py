"""Sparse-linear attention (SLA, arXiv 2509.24006) in plain torch, as TurboDiffusion runs it at inference.

    o = block_sparse_attention(q, k, v, block_map(q, k)) + proj(linear_attention(q, k, v))

Sequences are [B, L, H, D] (batch, tokens, heads, head_dim), strided views included; any L >= 1 and any float dtype.
The sparse branch keeps its sparsity (it gathers the selected keys and runs SDPA on them) and every temporary is
bounded by `_CHUNK_ELEMENTS`, so this also runs full-size models, only slower than a fused kernel.
"""

import torch
import torch.nn.functional as F

from ..format import BLOCK_K, BLOCK_Q, block_count, selected_blocks

_CHUNK_ELEMENTS = 1 << 26  # elements of a temporary: 128 MB in bf16, 256 MB in float32


def _pool(x: torch.Tensor, block: int) -> torch.Tensor:
    """Mean over each block of tokens, in float32 at least: [B, L, H, D] -> [B, H, blocks, D]; a ragged last block counts
    its own tokens only."""
    length, compute = x.shape[1], torch.promote_types(x.dtype, torch.float32)
    whole = length // block * block
    pooled = [x[:, :whole].unflatten(1, (-1, block)).mean(2, dtype=compute)]
    if whole < length:
        pooled.append(x[:, whole:].mean(1, keepdim=True, dtype=compute))
    return torch.cat(pooled, dim=1).transpose(1, 2)


def block_map(
    q: torch.Tensor, k: torch.Tensor, topk: float, block_q: int = BLOCK_Q, block_k: int = BLOCK_K
) -> torch.Tensor:
    """The key blocks each query block attends to, by the dot product of block means.

    Returns int64 [B, H, query blocks, T] with T = `selected_blocks(...)`, ascending and unique. Equal scores go to the
    lower block, so the result does not depend on the device. The reference also subtracts the mean key, which adds
    one constant per row and cannot change the order in float32."""
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
    """softmax(q k^T / sqrt(D)) v over the keys of the listed blocks. `blocks` as from `block_map`; returns [B, L, H, D]."""
    b, length, h, d = q.shape
    n_q, n_k, selected = block_count(length, block_q), block_count(k.shape[1], block_k), blocks.shape[-1]

    def split(x: torch.Tensor, block: int, count: int) -> torch.Tensor:
        padded = F.pad(x, (0, 0, 0, 0, 0, count * block - x.shape[1]))
        return padded.unflatten(1, (count, block)).permute(0, 3, 1, 2, 4)  # [B, H, count, block, D]

    q_blocks, k_blocks, v_blocks = split(q, block_q, n_q), split(k, block_k, n_k), split(v, block_k, n_k)
    out = torch.empty((b, n_q * block_q, h, d), dtype=q.dtype, device=q.device)
    out_blocks = out.unflatten(1, (n_q, block_q)).permute(0, 3, 1, 2, 4)
    key_exists = torch.arange(n_k * block_k, device=q.device).view(n_k, block_k) < k.shape[1]
    chunk = max(1, _CHUNK_ELEMENTS // (selected * block_k * d))  # query blocks per step
    for item in range(b):
        for head in range(h):
            for start in range(0, n_q, chunk):
                rows = slice(start, start + chunk)
                listed = blocks[item, head, rows]
                keys, values = (x[item, head][listed].flatten(1, 2).unsqueeze(1) for x in (k_blocks, v_blocks))
                mask = None
                if k.shape[1] % block_k:
                    mask = key_exists[listed].flatten(1)[:, None, None]
                attended = F.scaled_dot_product_attention(
                    q_blocks[item, head, rows].unsqueeze(1), keys, values, attn_mask=mask
                )
                out_blocks[item, head, rows] = attended.squeeze(1)
    return out[:, :length]


def linear_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) sum(phi(k)) + 1e-5) with phi = softmax over head_dim, over all tokens.

    Computed in float32 (the reference rounds every step to bf16), returned in q's dtype as [B, L, H, D]."""
    b, length, h, d = q.shape
    out = torch.empty((b, length, h, d), dtype=q.dtype, device=q.device)
    compute = torch.promote_types(q.dtype, torch.float32)
    heads = max(1, _CHUNK_ELEMENTS // (length * d))
    for item in range(b):
        for start in range(0, h, heads):
            group = slice(start, start + heads)
            phi_q, phi_k = (x[item, :, group].transpose(0, 1).softmax(-1, dtype=compute) for x in (q, k))
            key_values = phi_k.transpose(-1, -2) @ v[item, :, group].transpose(0, 1).to(compute)
            normalizer = phi_q @ phi_k.sum(1).unsqueeze(-1) + 1e-5
            out[item, :, group] = (phi_q @ key_values / normalizer).transpose(0, 1).to(q.dtype)
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

"""Sparse-linear attention in a few large torch operations: what runs where no kernel does (CPUs, Apple and Intel GPUs, older cards).

The function is that of reference/sla.py. Query blocks of all heads are the batch of one scaled_dot_product_attention, over keys and
values that are gathered, as whole blocks, into buffers used again by the next batch: fresh ones would be paged in each time,
which took as long as the attention itself. Temporaries are bounded by `_CHUNK_ELEMENTS`, on a CPU by what its caches hold.
"""

import torch
import torch.nn.functional as F

from ..format import BLOCK_K, BLOCK_Q, block_count
from ..reference.sla import block_map, linear_attention

__all__ = ["block_map", "block_sparse_attention", "sparse_linear_attention"]

_CHUNK_ELEMENTS = 1 << 26  # of a temporary: 128 MB in bf16, 256 MB in float32
_CACHE_ELEMENTS = 1 << 21  # of a CPU's buffer of gathered keys: 8 MB in float32; 64 times more took half as long again


def _heads_first(x: torch.Tensor, tokens: int) -> torch.Tensor:
    """[L, heads, D] -> contiguous [heads, tokens, D], zeros behind the end."""
    length, heads, d = x.shape
    out = x.new_empty((heads, tokens, d))
    out[:, :length] = x.transpose(0, 1)
    out[:, length:] = 0
    return out


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys of the listed blocks.

    q, k, v [B, L, H, D] of any strides and float dtype; blocks integers [B, H, query blocks, T] as from `block_map`, T = 0 gives
    zeros. Returns a contiguous [B, L, H, D] in q's dtype."""
    b, length, h, d = q.shape
    n_q, n_k, selected = block_count(length, block_q), block_count(k.shape[1], block_k), blocks.shape[-1]
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    if selected == 0:
        return out
    heads = min(h, max(1, _CHUNK_ELEMENTS // (max(n_q * block_q, n_k * block_k) * d)))
    limit = min(_CHUNK_ELEMENTS, _CACHE_ELEMENTS) if q.device.type == "cpu" else _CHUNK_ELEMENTS
    step = min(heads * n_q, max(1, limit // (selected * block_k * d)))  # query blocks of a batch
    gathered = q.new_empty((2, step * selected, block_k * d))
    key_exists = None
    if k.shape[1] % block_k:
        key_exists = (torch.arange(n_k * block_k, device=q.device) < k.shape[1]).view(n_k, block_k)
    for item in range(b):
        for first in range(0, h, heads):
            group = slice(first, first + heads)
            q_blocks = _heads_first(q[item, :, group], n_q * block_q).view(-1, 1, block_q, d)
            keys, values = (_heads_first(x[item, :, group], n_k * block_k).view(-1, block_k * d) for x in (k, v))
            listed = blocks[item, group]
            head = torch.arange(len(listed), device=q.device, dtype=blocks.dtype)[:, None, None]
            rows = (listed + head * n_k).flatten(0, 1)  # of `keys`
            for start in range(0, len(rows), step):
                batch = slice(start, start + step)
                taken = rows[batch].flatten()
                near_keys, near_values = (
                    torch.index_select(x, 0, taken, out=buffer[: len(taken)]).view(-1, 1, selected * block_k, d)
                    for x, buffer in zip((keys, values), gathered, strict=True)
                )
                mask = None
                if key_exists is not None:
                    mask = key_exists[taken % n_k].view(-1, 1, 1, selected * block_k)
                q_blocks[batch] = F.scaled_dot_product_attention(
                    q_blocks[batch], near_keys, near_values, attn_mask=mask
                )
            out[item, :, group] = q_blocks.view(-1, n_q * block_q, d)[:, :length].transpose(0, 1)
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
    these are None. Returns a contiguous [B, L, H, D] in q's dtype."""
    out = block_sparse_attention(q, k, v, block_map(q, k, topk, block_q, block_k), block_q, block_k)
    if proj_weight is not None:
        out += F.linear(linear_attention(q, k, v), proj_weight, proj_bias)
    return out

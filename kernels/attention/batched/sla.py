"""Sparse-linear attention in a few large torch operations: what runs where no kernel does (CPUs, Apple and Intel GPUs,
older cards).

Computes the function of reference/sla.py. Query blocks of several heads form the batch of one
scaled_dot_product_attention. Their key and value blocks are gathered into buffers that every batch reuses: the system
would map the pages of new buffers each time, which took as long as the attention itself. Temporaries have at most
`_CHUNK_ELEMENTS` elements, and fewer on a CPU, so that they stay in its caches.
"""

import torch
import torch.nn.functional as F

from ..format import BLOCK_K, BLOCK_Q, block_count
from ..reference.sla import block_map

__all__ = ["block_map", "block_sparse_attention", "sparse_linear_attention"]

_CHUNK_ELEMENTS = 1 << 26  # of a temporary: 128 MB in bf16, 256 MB in float32
# On a CPU: 8 MB in float32, so that the keys and values of one long head stay in its last cache, from which they are
# gathered.
_CPU_CHUNK_ELEMENTS = 1 << 21
_CPU_LINEAR_ELEMENTS = 1 << 17  # of phi(q), phi(k) on a CPU: 512 KB in float32 stay in the cache of a core


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys of the listed blocks.

    q, k, v [B, L, H, D] of any strides and float dtype; blocks integers [B, H, query blocks, T] as from `block_map`, T
    = 0 gives zeros. Returns a contiguous [B, L, H, D] in q's dtype."""
    b, length, h, d = q.shape
    n_q, n_k, selected = block_count(length, block_q), block_count(k.shape[1], block_k), blocks.shape[-1]
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    if selected == 0:
        return out
    limit = min(_CHUNK_ELEMENTS, _CPU_CHUNK_ELEMENTS) if q.device.type == "cpu" else _CHUNK_ELEMENTS
    heads = min(h, max(1, limit // (max(n_q * block_q, n_k * block_k) * d)))
    step = min(heads * n_q, max(1, limit // (selected * block_k * d)))  # query blocks of a batch
    gathered = q.new_empty((2, step * selected, block_k * d))
    padded_q = q.new_zeros((heads, n_q * block_q, d))  # heads first; zeros behind the end
    padded_kv = q.new_zeros((2, heads, n_k * block_k, d))
    key_exists = None
    if k.shape[1] % block_k:
        key_exists = (torch.arange(n_k * block_k, device=q.device) < k.shape[1]).view(n_k, block_k)
    for item in range(b):
        for first in range(0, h, heads):
            group = slice(first, first + heads)
            listed = blocks[item, group]
            count = len(listed)
            padded_q[:count, :length] = q[item, :, group].transpose(0, 1)
            for x, padded in zip((k, v), padded_kv, strict=True):
                padded[:count, : x.shape[1]] = x[item, :, group].transpose(0, 1)
            q_blocks = padded_q[:count].view(-1, 1, block_q, d)
            keys, values = padded_kv[:, :count].flatten(1).view(2, -1, block_k * d)
            head = torch.arange(count, device=q.device, dtype=blocks.dtype)[:, None, None]
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
            out[item, :, group] = padded_q[:count, :length].transpose(0, 1)
    return out


def add_linear_branch(
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    """Adds weight [D, D] @ `linear_attention(q, k, v)` + bias [D], if any, to out [B, L, H, D], a chunk of tokens at a
    time.

    The projection goes into phi(k)^T v [D, D], so that one product with phi(q) is both. Computed in float32 at
    least."""
    b, _, h, d = q.shape
    compute = torch.promote_types(q.dtype, torch.float32)
    limit = min(_CHUNK_ELEMENTS, _CPU_LINEAR_ELEMENTS) if q.device.type == "cpu" else _CHUNK_ELEMENTS
    heads = min(h, max(1, limit // (max(q.shape[1], k.shape[1]) * d)))
    tokens = max(1, limit // (heads * d))
    weight = weight.to(compute)
    bias = weight.new_zeros(d) if bias is None else bias.to(compute)
    for item in range(b):
        for first in range(0, h, heads):
            out_h, q_h, k_h, v_h = (x[item, :, first : first + heads].transpose(0, 1) for x in (out, q, k, v))
            key_values = k_h.new_zeros((len(k_h), d, d), dtype=compute)
            k_sum = key_values.new_zeros((len(k_h), d, 1))
            for k_part, v_part in zip(k_h.split(tokens, 1), v_h.split(tokens, 1), strict=True):
                phi = k_part.softmax(-1, dtype=compute)
                key_values.baddbmm_(phi.mT, v_part.to(compute))
                k_sum += phi.sum(1).unsqueeze(-1)
            values = key_values @ weight.mT
            for out_part, q_part in zip(out_h.split(tokens, 1), q_h.split(tokens, 1), strict=True):
                phi = q_part.softmax(-1, dtype=compute)
                out_part += ((phi @ values).div_(phi @ k_sum + 1e-5).add_(bias)).to(out.dtype)


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
        add_linear_branch(out, q, k, v, proj_weight, proj_bias)
    return out

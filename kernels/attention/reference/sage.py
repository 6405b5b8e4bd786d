"""Sage attention: sparse-linear attention whose sparse branch has int8 scores, as SageAttention 2 quantizes it
(SageSLA).

    scores: q and k (less its mean over L) in int8, one scale per block;  o = softmax(scores) v in one of `PV_FORMATS`

Plain torch that rounds where the kernels round, so that their results can be compared with it. Integer products are
exact in float32. The softmax visits the listed key blocks in the kernel's order, because weights are rounded relative
to the running maximum.
Sequences are [B, L, H, D]; any L >= 1, any float dtype; computed in float32 with temporaries bounded by
`_CHUNK_ELEMENTS`.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange

from ..format import BLOCK_K, BLOCK_Q, block_count
from ..pv_format import PV_FORMATS
from .sla import block_map, linear_attention

_CHUNK_ELEMENTS = 1 << 26


def _codes(x: torch.Tensor) -> torch.Tensor:
    """Nearest integer, halves away from zero, as upstream rounds."""
    return (x + torch.where(x >= 0, 0.5, -0.5)).trunc()


def _quantize_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes and one float32 scale for each [tokens, D] block: [..., tokens, D] -> same, [..., 1, 1]."""
    scale = x.abs().amax((-2, -1), keepdim=True) / 127 + 1e-7
    return _codes(x * (1 / scale)).to(torch.int8), scale


def kv_quantize(
    k: torch.Tensor, v: torch.Tensor, k_mean: torch.Tensor, v_max: torch.Tensor, *, pv: str, block_k: int = BLOCK_K
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What `sage_attention` reads, from k, v and their statistics over L: the mean key and max |v|, [B, H, D] float32.

    Returns k8 int8 [B, H, blocks * block_k, D], k_scale float32 [B, H, blocks], then v8 [B, H, D, blocks * block_k] in
    the format's type (transposed: 8-bit tensor cores read it so) with v_scale float32 [B, H, D]; for "fp16" v8 is
    [B, H, blocks * block_k, D] and v_scale None. Codes past the end are 0; a channel of zeros keeps a finite scale."""
    length, blocks = k.shape[1], block_count(k.shape[1], block_k)
    pad = (0, 0, 0, blocks * block_k - length)
    smooth = F.pad(rearrange(k.float() - k_mean[:, None], "b l h d -> b h l d"), pad)
    k8, k_scale = _quantize_blocks(rearrange(smooth, "b h (n l) d -> b h n l d", n=blocks))
    k8, k_scale = rearrange(k8, "b h n l d -> b h (n l) d").contiguous(), rearrange(k_scale, "b h n 1 1 -> b h n")
    padded = F.pad(rearrange(v.float(), "b l h d -> b h l d"), pad)
    v_limit = PV_FORMATS[pv].v_max
    if v_limit is None:
        return k8, k_scale, padded.half().contiguous(), None
    v_scale = v_max.clamp_min(1e-6) / v_limit
    v8 = rearrange(padded, "b h l d -> b h d l") * (1 / v_scale)[..., None]
    v8 = _codes(v8).to(torch.int8) if pv == "int8" else v8.to(torch.float8_e4m3fn)
    return k8, k_scale, v8.contiguous(), v_scale


def sage_attention(
    q: torch.Tensor,
    k8: torch.Tensor,
    k_scale: torch.Tensor,
    v8: torch.Tensor,
    v_scale: torch.Tensor | None,
    blocks: torch.Tensor,
    length: int,
    *,
    pv: str,
    block_q: int = BLOCK_Q,
    linear: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over the listed blocks of `length` quantized keys (see `kv_quantize`), as [B, L, H,
    D].

    `linear` = (values [B, H, D, D], k_sum [B, H, D], bias [D]) adds the linear branch, weights @ values + bias with
    weights = phi(q) k_sum / (phi(q) . k_sum + 1e-5), phi = softmax over D. T = 0 gives zeros for the sparse branch."""
    b, l_q, h, d = q.shape
    block_k = k8.shape[2] // k_scale.shape[2]
    n_q, selected = blocks.shape[2:]
    p_max = PV_FORMATS[pv].p_max
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    step = max(1, _CHUNK_ELEMENTS // (block_q * max(d, block_k)))
    in_block = torch.arange(block_k, device=q.device)
    v_layout = "(n l) d -> n l d" if pv == "fp16" else "d (n l) -> n l d"
    for item in range(b):
        for head in range(h):
            keys = rearrange(k8[item, head].float(), "(n l) d -> n l d", l=block_k)
            values = rearrange(v8[item, head].float(), v_layout, l=block_k)
            for start in range(0, n_q, step):
                listed = blocks[item, head, start : start + step].long()
                rows = slice(start * block_q, min((start + step) * block_q, l_q))
                x = q[item, rows, head].float()
                padded = F.pad(x, (0, 0, 0, len(listed) * block_q - len(x)))
                q_blocks = rearrange(padded, "(n l) d -> n l d", l=block_q)
                q8, q_scale = _quantize_blocks(q_blocks)
                q_scale = q_scale * (d**-0.5 * math.log2(math.e))
                acc = torch.zeros_like(q_blocks)
                total = q_blocks.new_zeros(len(listed), block_q, 1)
                top = torch.full_like(total, -torch.inf)
                for t in range(selected):
                    i = listed[:, t]
                    scores = q8.float() @ keys[i].transpose(1, 2) * (q_scale * k_scale[item, head, i, None, None])
                    scores.masked_fill_((i[:, None] * block_k + in_block >= length)[:, None], -torch.inf)
                    peak = torch.maximum(top, scores.amax(-1, keepdim=True) - math.log2(p_max))
                    weights = torch.exp2(scores - peak)  # the largest is p_max
                    decay = torch.exp2(top - peak)
                    total = total * decay + weights.sum(-1, keepdim=True)  # of unrounded weights
                    acc = acc * decay + _round_weights(weights, pv) @ values[i]
                    top = peak
                o = acc / total.masked_fill(total == 0, 1)
                if v_scale is not None:
                    o = o * v_scale[item, head]
                if linear is not None:
                    o = o + _linear_branch(q_blocks, linear, item, head)
                out[item, rows, head] = rearrange(o, "n l d -> (n l) d")[: len(x)].to(q.dtype)
    return out


def _round_weights(weights: torch.Tensor, pv: str) -> torch.Tensor:
    if pv == "int8":
        return weights.round()
    return weights.to(torch.float16 if pv == "fp16" else torch.float8_e4m3fn).float()


def _linear_branch(q_blocks: torch.Tensor, linear: tuple, item: int, head: int) -> torch.Tensor:
    values, k_sum, bias = linear
    weights = q_blocks.softmax(-1) * k_sum[item, head]
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-5)
    return weights @ values[item, head].float() + bias.float()


def sage_block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    *,
    pv: str,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys of the listed blocks, by sage attention. `blocks` as from
    `block_map`."""
    k_mean = k.mean(1, dtype=torch.float32)
    v_max = v.abs().amax(1).float()
    quantized = kv_quantize(k, v, k_mean, v_max, pv=pv, block_k=block_k)
    return sage_attention(q, *quantized, blocks, k.shape[1], pv=pv, block_q=block_q)


def sage_sparse_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    proj_weight: torch.Tensor | None,
    proj_bias: torch.Tensor | None,
    *,
    topk: float,
    pv: str,
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """Both branches, the sparse one by sage attention; only that one where proj_weight [D, D] and proj_bias [D] are
    None. Returns [B, L, H, D] in q's dtype."""
    blocks = block_map(q, k, topk, block_q, block_k)
    out = sage_block_sparse_attention(q, k, v, blocks, pv=pv, block_q=block_q, block_k=block_k)
    if proj_weight is None:
        return out
    return out + F.linear(linear_attention(q, k, v), proj_weight, proj_bias)

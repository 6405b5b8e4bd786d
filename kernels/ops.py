"""The operators, registered as `torch.ops.turbodiffusion.*` so that torch.compile takes each as one opaque node.

Each entry validates once, asks `backends` who runs it, and calls that. Sequences are [B, L, H, D]."""

import torch

from .backends import HALF, HEAD_WIDTHS, choose, load
from .reference.int8 import tile_count
from .reference.sla import BLOCK_K, BLOCK_Q, block_count, selected_blocks
from .tally import count


def _attention_unfit(q: torch.Tensor, *others: torch.Tensor) -> str | None:
    """Why the attention kernels cannot take these tensors, or None."""
    if q.dtype not in HALF and q.device.type != "cpu":
        return f"its kernels compute in float16 and bfloat16, not {str(q.dtype).removeprefix('torch.')}"
    if q.shape[-1] not in HEAD_WIDTHS:
        return f"its kernels have head widths {HEAD_WIDTHS}, not {q.shape[-1]}"
    if any(x.stride(-1) != 1 for x in (q, *others)):
        return "its kernels need the head width to be contiguous"
    return None


def check_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Raises ValueError unless q, k, v are [B, L, H, D] of one dtype and device, with equal B, H, D and at least one token."""
    if q.ndim != 4 or k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q, k, v must be [B, L, H, D] with equal B, H and D: {[list(x.shape) for x in (q, k, v)]}.")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"q and k need at least one token, head and batch item: {list(q.shape)}, {list(k.shape)}.")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(f"q, k, v must share dtype and device: {[(x.dtype, str(x.device)) for x in (q, k, v)]}.")


@torch.library.custom_op("turbodiffusion::block_map", mutates_args=())
def block_map(
    q: torch.Tensor, k: torch.Tensor, topk: float, block_q: int = BLOCK_Q, block_k: int = BLOCK_K
) -> torch.Tensor:
    """The key blocks each query block attends to: int32 [B, H, query blocks, T], ascending and unique,
    T = max(1, floor(topk * key blocks)); equal scores go to the lower block."""
    check_attention(q, k, k)
    backend = choose(q, _attention_unfit(q, k)).backend
    run = load("block_map", "block_map" if backend == "triton" else "sla", backend)
    return run(q, k, topk, block_q, block_k).int()


@block_map.register_fake
def _(q, k, topk, block_q=BLOCK_Q, block_k=BLOCK_K):
    shape = (q.shape[0], q.shape[2], block_count(q.shape[1], block_q), selected_blocks(k.shape[1], topk, block_k))
    return q.new_empty(shape, dtype=torch.int32)


@torch.library.custom_op("turbodiffusion::sparse_linear_attention", mutates_args=())
def sparse_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    proj_weight: torch.Tensor | None,
    proj_bias: torch.Tensor | None,
    topk: float,
    pv: str = "",
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """Attention to the `topk` share of key blocks, plus the projected linear attention to all tokens where a projection
    [D, D] and bias [D] are given. Returns a contiguous [B, L, H, D] in q's dtype.

    With `pv` ("fp16", "int8" or "fp8") the sparse part computes q k^T in int8 and its product with v in that format, as
    SageSLA; without, in 16 bits (float32 in float32)."""
    check_attention(q, k, v)
    backend = choose(q, _attention_unfit(q, k, v)).backend
    count("sparse attention")
    if pv:
        run = load("sage_sparse_linear_attention", "sage_attention" if backend == "triton" else "sage", backend)
        return run(q, k, v, proj_weight, proj_bias, topk=topk, pv=pv, block_q=block_q, block_k=block_k)
    run = load("sparse_linear_attention", "block_sparse_attention" if backend == "triton" else "sla", backend)
    return run(q, k, v, proj_weight, proj_bias, topk=topk, block_q=block_q, block_k=block_k)


@sparse_linear_attention.register_fake
def _(q, k, v, proj_weight, proj_bias, topk, pv="", block_q=BLOCK_Q, block_k=BLOCK_K):
    return q.new_empty(q.shape)


def _int8_unfit(x: torch.Tensor, weight: torch.Tensor) -> str | None:
    """Why the int8 kernels cannot take these tensors, or None."""
    if x.dtype not in HALF and x.device.type != "cpu":
        return f"its kernels compute in float16 and bfloat16, not {str(x.dtype).removeprefix('torch.')}"
    if not weight.is_contiguous():
        return "its kernels need a contiguous weight"
    return None


@torch.library.custom_op("turbodiffusion::int8_linear", mutates_args=())
def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "block",
) -> torch.Tensor:
    """x [..., M, K] times an int8 weight [N, K] with one float32 scale per 128x128 tile, the activation quantised on the way
    by "block" (128x128 tiles of each batch item, as upstream) or "row". Returns [..., M, N] in x's dtype.

    Raises ValueError for shapes or dtypes that do not fit together."""
    n, k = weight.shape
    if (
        x.ndim < 2
        or x.shape[-1] != k
        or weight.dtype != torch.int8
        or weight_scale.shape != (tile_count(n), tile_count(k))
    ):
        raise ValueError(
            f"x [..., M, K] and an int8 weight [N, K] with scales [N/128, K/128] are needed: {list(x.shape)}, "
            f"{weight.dtype} {list(weight.shape)}, {list(weight_scale.shape)}."
        )
    if activation not in ("block", "row"):
        raise ValueError(f"activation is {activation!r}: choose block or row.")
    count("int8 linear")
    if x.numel() == 0:
        return x.new_zeros((*x.shape[:-1], n))
    backend = choose(x, _int8_unfit(x, weight)).backend
    run = load("int8_linear", "int8_linear" if backend == "triton" else "int8", backend)
    return run(x, weight, weight_scale, bias, activation=activation)


@int8_linear.register_fake
def _(x, weight, weight_scale, bias=None, activation="block"):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))

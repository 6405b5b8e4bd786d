"""Sparse attention: which key blocks, attention to them, and both branches of sparse-linear attention in one call."""

import functools
import logging

import torch

from ..backends import HALF, HEAD_WIDTHS, Operator
from ..reference.sla import BLOCK_K, BLOCK_Q, block_count, dense_attention, selected_blocks
from ..tally import count

logger = logging.getLogger("turbodiffusion")

BLOCK_MAP = Operator("block_map", "attention", {"triton": "triton.block_map", "torch": "torch.sla"})
BLOCK_SPARSE = Operator(
    "block_sparse_attention",
    "attention",
    {"triton": "triton.block_sparse_attention", "torch": "torch.sla"},
)
SPARSE_LINEAR = Operator(
    "sparse_linear_attention",
    "attention",
    {"triton": "triton.block_sparse_attention", "torch": "torch.sla", "dense": ""},
)
SAGE_BLOCK_SPARSE = Operator(
    "sage_block_sparse_attention",
    "8-bit attention",
    {"triton": "triton.sage_attention", "torch": "reference.sage"},
)
SAGE_SPARSE_LINEAR = Operator(
    "sage_sparse_linear_attention",
    "8-bit attention",
    {"triton": "triton.sage_attention", "torch": "reference.sage", "dense": ""},
)
PV_FORMATS = ("", "fp16", "int8", "fp8")


def _unfit(q: torch.Tensor, *others: torch.Tensor) -> dict[str, str]:
    """Why the kernels cannot take these tensors."""
    if q.dtype not in HALF and q.device.type != "cpu":
        reason = f"its kernels compute in float16 and bfloat16, not {str(q.dtype).removeprefix('torch.')}"
    elif q.shape[-1] not in HEAD_WIDTHS:
        reason = f"its kernels have head widths {HEAD_WIDTHS}, not {q.shape[-1]}"
    elif any(x.stride(-1) != 1 for x in (q, *others)):
        reason = "its kernels need the head width to be contiguous"
    else:
        return {}
    return {"triton": reason}


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, topk: float = 1.0, pv: str = "") -> None:
    """Raises ValueError unless q, k, v are [B, L, H, D] of one dtype and device, with equal B, H, D and at least one token."""
    if q.ndim != 4 or k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q, k, v must be [B, L, H, D] with equal B, H and D: {[list(x.shape) for x in (q, k, v)]}.")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"q and k need at least one token, head and batch item: {list(q.shape)}, {list(k.shape)}.")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(f"q, k, v must share dtype and device: {[(x.dtype, str(x.device)) for x in (q, k, v)]}.")
    if not 0 < topk <= 1:
        raise ValueError(f"topk is {topk}: it is a share of the key blocks, above 0 and at most 1.")
    if pv not in PV_FORMATS:
        raise ValueError(f"pv is {pv!r}: choose one of {', '.join(repr(name) for name in PV_FORMATS)}.")


@torch.library.custom_op("turbodiffusion::block_map", mutates_args=())
def block_map(
    q: torch.Tensor, k: torch.Tensor, topk: float, block_q: int = BLOCK_Q, block_k: int = BLOCK_K
) -> torch.Tensor:
    """The key blocks each query block attends to: int32 [B, H, query blocks, T], ascending and unique,
    T = max(1, floor(topk * key blocks)); equal scores go to the lower block."""
    _check(q, k, k, topk)
    return BLOCK_MAP.find(q.device, _unfit(q, k))(q, k, topk, block_q, block_k).int()


@block_map.register_fake
def _(q, k, topk, block_q=BLOCK_Q, block_k=BLOCK_K):
    shape = (q.shape[0], q.shape[2], block_count(q.shape[1], block_q), selected_blocks(k.shape[1], topk, block_k))
    return q.new_empty(shape, dtype=torch.int32)


@torch.library.custom_op("turbodiffusion::block_sparse_attention", mutates_args=())
def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    blocks: torch.Tensor,
    pv: str = "",
    block_q: int = BLOCK_Q,
    block_k: int = BLOCK_K,
) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over the listed key blocks: `blocks` integers [B, H, query blocks, T] as from `block_map`.
    Returns a contiguous [B, L, H, D] in q's dtype; `pv` as in `sparse_linear_attention`."""
    _check(q, k, v, pv=pv)
    b, length, h, _ = q.shape
    if blocks.ndim != 4 or blocks.shape[:3] != (b, h, block_count(length, block_q)) or blocks.dtype.is_floating_point:
        raise ValueError(
            f"blocks must be integers [B, H, query blocks, T] = [{b}, {h}, {block_count(length, block_q)}, T]: "
            f"{blocks.dtype} {list(blocks.shape)}."
        )
    count("sparse attention")
    if pv:
        run = SAGE_BLOCK_SPARSE.find(q.device, _unfit(q, k, v))
        return run(q, k, v, blocks.contiguous(), pv=pv, block_q=block_q, block_k=block_k)
    run = BLOCK_SPARSE.find(q.device, _unfit(q, k, v))
    return run(q, k, v, blocks.contiguous(), block_q, block_k).contiguous()


@block_sparse_attention.register_fake
def _(q, k, v, blocks, pv="", block_q=BLOCK_Q, block_k=BLOCK_K):
    return q.new_empty(q.shape)


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
    SageSLA; without, in 16 bits (float32 in float32). On a device that can run neither the kernels nor the definition it is
    full attention without the linear branch, counted as such and logged once as a warning."""
    _check(q, k, v, topk, pv)
    operator = SAGE_SPARSE_LINEAR if pv else SPARSE_LINEAR
    choice = operator.choose(q.device, _unfit(q, k, v))
    if choice.backend == "dense":
        _warn_dense(q.device, str(choice))
        count("dense attention")
        return dense_attention(q, k, v)
    count("sparse attention")
    options = {"topk": topk, "block_q": block_q, "block_k": block_k} | ({"pv": pv} if pv else {})
    return operator.load(choice.backend)(q, k, v, proj_weight, proj_bias, **options).contiguous()


@sparse_linear_attention.register_fake
def _(q, k, v, proj_weight, proj_bias, topk, pv="", block_q=BLOCK_Q, block_k=BLOCK_K):
    return q.new_empty(q.shape)


@functools.cache
def _warn_dense(device: torch.device, choice: str) -> None:
    """Once per device: the choice is."""
    logger.warning("Sparse attention cannot run on %s; full attention runs instead, slower: %s.", device, choice)

"""The entry of sparse-linear attention (SLA): the selection of key blocks, attention to them, and the linear branch, in
one call."""

from collections.abc import Mapping

import torch

from ..call_counter import count
from ..dispatch import NoBackendError, Operator, unsupported_dtype
from .format import BLOCK_K, BLOCK_Q
from .pv_format import AUTOMATIC, PV_FORMATS, SIXTEEN_BITS, Format, fastest_format

HEAD_DIMS = (64, 128)


SPARSE_LINEAR = Operator("sparse_linear_attention", "attention", "sparse attention")
SAGE_SPARSE_LINEAR = Operator("sage_sparse_linear_attention", "attention", "sage attention", self_test="sage")


def operator_for(pv: str) -> Operator:
    """The operator that computes `pv`, which is any format but "auto"."""
    return SPARSE_LINEAR if pv == SIXTEEN_BITS else SAGE_SPARSE_LINEAR


def automatic_format(device: torch.device, unsupported: Mapping[str, str] | None = None) -> Format:
    """The format that sparse attention takes on a device by itself: sage attention's where it is predicted to be faster
    and its kernels run and pass their self-test, else 16 bits. `unsupported` as in `Operator.choose`.

    Raises torch.OutOfMemoryError if there is no memory for the self-test."""
    fastest = fastest_format(device)
    if fastest.name == SIXTEEN_BITS:
        return fastest
    try:
        choice = SAGE_SPARSE_LINEAR.choose(device, unsupported)
    except NoBackendError as error:
        return Format(SIXTEEN_BITS, error.reasons)
    if choice.backend != "triton":
        return Format(SIXTEEN_BITS, choice.rejected.get("triton", f"{choice.backend} is no faster in 8 bits"))
    return fastest


def check_sparse_attention(device: torch.device, pv: str = SIXTEEN_BITS) -> None:
    """Raises NoBackendError if `sparse_linear_attention` cannot run on a device."""
    operator_for(automatic_format(device).name if pv == AUTOMATIC else pv).choose(device)


def _unsupported(q: torch.Tensor, *others: torch.Tensor) -> dict[str, str]:
    """By backend, the reason why it cannot take these tensors."""
    reason = unsupported_dtype(q.dtype, q.device)
    if reason is None and q.shape[-1] not in HEAD_DIMS:
        reason = f"its kernels support a head_dim of {' or '.join(map(str, HEAD_DIMS))}, not {q.shape[-1]}"
    if reason is None and any(x.stride(-1) != 1 for x in (q, *others)):
        reason = "its kernels need a contiguous last dimension (head_dim)"
    return {} if reason is None else {"triton": reason}


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, topk: float, pv: str) -> None:
    """Raises ValueError unless q, k, v are [B, L, H, D] of one dtype and device, with equal B, H, D and at least one
    token, `topk` is in (0, 1], and `pv` is the name of a format or "auto"."""
    if q.ndim != 4 or k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q, k, v must be [B, L, H, D] with equal B, H and D: {[list(x.shape) for x in (q, k, v)]}.")
    if 0 in q.shape or 0 in k.shape:
        raise ValueError(f"q and k need at least one token, head and batch item: {list(q.shape)}, {list(k.shape)}.")
    if not q.dtype == k.dtype == v.dtype or not q.device == k.device == v.device:
        raise ValueError(f"q, k, v must share dtype and device: {[(x.dtype, str(x.device)) for x in (q, k, v)]}.")
    if not 0 < topk <= 1:
        raise ValueError(f"topk is {topk}: it is a share of the key blocks, above 0 and at most 1.")
    known = (SIXTEEN_BITS, *PV_FORMATS, AUTOMATIC)
    if pv not in known:
        raise ValueError(f"pv is {pv!r}: choose one of {', '.join(map(repr, known))}.")


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
    """Attention of q [B, L, H, D] to the `topk` share of the key blocks of k, v [B, keys, H, D], plus the projected
    linear attention to all tokens where a projection [D, D] and bias [D] are given. Returns a contiguous [B, L, H, D]
    in q's dtype.

    With `pv` "fp16", "int8" or "fp8" the sparse branch is sage attention: q k^T in int8, and the product of the softmax
    weights with v in that format. With "" it is in 16 bits, or in float32 for float32 tensors; with "auto" in the
    format that `automatic_format` gives. Raises ValueError for shapes, dtypes or options that do not fit together, and
    NoBackendError if no backend can run it."""
    _check(q, k, v, topk, pv)
    unsupported = _unsupported(q, k, v)
    if pv == AUTOMATIC:
        pv = automatic_format(q.device, unsupported).name
    run = operator_for(pv).find(q.device, unsupported)
    count("sparse attention")
    if pv:
        count("sage attention")
    options = {"topk": topk, "block_q": block_q, "block_k": block_k} | ({"pv": pv} if pv else {})
    return run(q, k, v, proj_weight, proj_bias, **options).contiguous()


@sparse_linear_attention.register_fake
def _(
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
    return q.new_empty(q.shape)

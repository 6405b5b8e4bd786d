"""k and v as sage attention reads them (`kv_quantize` of the reference), in one pass over both.

v is stored in its final type, and transposed where that has 8 bits, [B, H, D, tokens]: casting bf16 to fp16 in the
attention loop, or transposing an 8-bit v there, nearly doubles that loop.
"""

import torch
import triton
import triton.language as tl

from ...launch import launch
from ...triton_primitives import max_abs
from ..format import BLOCK_K
from ..pv_format import PV_FORMATS


@triton.jit
def round_away(x):
    """Nearest integer, halves away from zero, as int8."""
    return (x + tl.where(x >= 0, 0.5, -0.5)).to(tl.int8)


@triton.jit
def quantize_with_one_scale(x):
    """int8 codes and the one scale of a float32 block [tokens, D]; the scale is NaN if x has one."""
    scale = max_abs(x) / 127 + 1e-7
    return round_away(x * (1 / scale)), scale


@triton.jit(do_not_specialize=["L", "H"])
def _kv_quantize_kernel(
    p_k, p_v, p_k_mean, p_v_scale, p_k8, p_k_scale, p_v8,
    k_b, k_l, k_h, v_b, v_l, v_h,
    L, H,
    D: tl.constexpr, BLOCK_K: tl.constexpr, PV: tl.constexpr,
):  # fmt: skip
    i_k, i_bh, n_k = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    i_b, i_h = i_bh // H, i_bh % H
    o_l, o_d = tl.arange(0, BLOCK_K), tl.arange(0, D)
    i_l = i_k.to(tl.int64) * BLOCK_K
    m_l = (o_l < L - i_k * BLOCK_K)[:, None]
    b_k = tl.load(p_k + i_b * k_b + i_h * k_h + i_l * k_l + o_l[:, None] * k_l + o_d[None, :], mask=m_l, other=0)
    b_mean = tl.load(p_k_mean + i_bh * D + o_d)
    b_k8, k_scale = quantize_with_one_scale(tl.where(m_l, b_k.to(tl.float32) - b_mean[None, :], 0.0))
    tl.store(p_k8 + (i_bh * n_k * BLOCK_K + i_l + o_l[:, None]) * D + o_d[None, :], b_k8)
    tl.store(p_k_scale + i_bh * n_k + i_k, k_scale)
    b_v = tl.load(p_v + i_b * v_b + i_h * v_h + i_l * v_l + o_l[:, None] * v_l + o_d[None, :], mask=m_l, other=0)
    if PV == "fp16":
        tl.store(p_v8 + (i_bh * n_k * BLOCK_K + i_l + o_l[:, None]) * D + o_d[None, :], b_v.to(tl.float16))
    else:
        b_v = b_v.to(tl.float32) * (1 / tl.load(p_v_scale + i_bh * D + o_d))[None, :]
        b_v8 = round_away(b_v) if PV == "int8" else b_v.to(tl.float8e4nv)
        tl.store(p_v8 + (i_bh * D + o_d[:, None]) * (n_k * BLOCK_K) + i_l + o_l[None, :], tl.trans(b_v8))


def kv_quantize(
    k: torch.Tensor, v: torch.Tensor, k_mean: torch.Tensor, v_max: torch.Tensor, *, pv: str, block_k: int = BLOCK_K
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """k, v [B, L, H, D] with a contiguous last dimension; k_mean, v_max from `kv_prepare`; D in {64, 128}."""
    b, length, h, d = k.shape
    n_k = triton.cdiv(length, block_k)
    tokens = n_k * block_k
    k8 = torch.empty((b, h, tokens, d), dtype=torch.int8, device=k.device)
    k_scale = torch.empty((b, h, n_k), dtype=torch.float32, device=k.device)
    v8 = torch.empty(
        (b, h, tokens, d) if pv == "fp16" else (b, h, d, tokens), dtype=PV_FORMATS[pv].dtype, device=k.device
    )
    largest = PV_FORMATS[pv].v_max
    v_scale = None if largest is None else v_max.clamp_min(1e-6) / largest
    launch(
        _kv_quantize_kernel, (n_k, b * h),
        k, v, k_mean, v_scale, k8, k_scale, v8,
        *k.stride()[:3], *v.stride()[:3],
        length, h,
        D=d, BLOCK_K=block_k, PV=pv, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return k8, k_scale, v8, v_scale

"""Sparse-linear attention on bfloat16 tensors: attention, preparation of k and v, block map.

The launch configs are those of the launchers; test_aot.py compares them."""

from td_pack.tests.support.aot import NVIDIA, RDNA, Build, KernelCase, arguments, loops, strides

MMA = dict.fromkeys(NVIDIA, "HMMA") | {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}
MMA |= {"gfx942": "mfma", **dict.fromkeys(RDNA, "wmma")}
ROOMY = ("sm_80", "sm_90", "sm_100")


def _attention(d: int, linear: bool, loops: dict[str, int]) -> KernelCase:
    constexprs = {"D": d, "BLOCK_Q": 128, "BLOCK_K": 64, "BLOCK_M": 128, "BLOCK_N": 64, "LINEAR": linear}
    signature = arguments(p_bf16="p_q p_k p_v p_o", p_i32="p_blocks", i32="L_Q L_K N_Q T H", fp32="scale")
    if linear:
        signature |= arguments(p_bf16="p_values p_bias", p_fp32="p_k_sum")
    else:
        constexprs |= dict.fromkeys(("p_values", "p_k_sum", "p_bias"))

    def build(target: str) -> Build:
        if target in RDNA:
            return Build(8, 1, MMA[target], constexprs={"BLOCK_N": 32 if target == "gfx1201" or d == 64 else 16})
        return Build(8, 3 if d == 64 or target in ROOMY else 2, MMA[target], loops.get(target))

    return KernelCase(
        name=f"sla_attention_d{d}_{'linear' if linear else 'sparse'}",
        module="kernels.attention.triton.sla",
        function="_attention_kernel",
        signature=signature | dict.fromkeys(strides("qkv"), "i32"),
        constexprs=constexprs,
        targets={target: build(target) for target in MMA},
        divisible=strides("qkv"),
    )


def _kv_partial(d: int, loops: dict[str, int]) -> KernelCase:
    signature = arguments(p_bf16="p_k p_v", p_fp32="p_kv p_k_sum p_k_total p_v_max p_k_pooled", i32="L N_K CHUNK H")
    return KernelCase(
        name=f"sla_kv_partial_d{d}",
        module="kernels.attention.triton.kv_prepare",
        function="_kv_partial_kernel",
        signature=signature | dict.fromkeys(strides("kv"), "i32"),
        constexprs={"D": d, "BLOCK_K": 64},
        targets={
            t: Build((8 if d == 128 else 4) * (2 if t in RDNA else 1), 1 if t in RDNA else 2, MMA[t], loops.get(t))
            for t in MMA
        },
        divisible=strides("kv"),
    )


def _plain(name: str, module: str, function: str, signature: dict, warps: int, stages: int, divisible=(), **constexprs):
    """A small kernel: it compiles and its loop does not spill."""
    build = Build(warps, stages)
    return KernelCase(
        name,
        f"kernels.attention.triton.{module}",
        function,
        signature,
        constexprs,
        dict.fromkeys(MMA, build),
        divisible,
    )


_FINISH = arguments(
    p_fp32="p_kv p_k_sum_part p_k_total p_v_max_part p_k_sum p_k_mean p_v_max",
    p_bf16="p_weight p_values",
    i32="L SPLIT",
)
_POOL = arguments(p_bf16="p_x", p_fp32="p_y", i32="x_b x_l x_h L H")
_SCORE = arguments(p_fp32="p_q p_k p_scores", i32="N_Q N_K")
_TOP = arguments(p_fp32="p_scores", p_i32="p_blocks", i32="N_K T")

CASES = [
    _attention(128, True, loops(553, 524, 524, 358, 410, 505)),
    _attention(128, False, loops(535, 520, 520, 372, 406, 500)),
    _attention(64, True, loops(385, 376, 376, 301, 346, 352)),
    _attention(64, False, loops(376, 376, 376, 300, 346, 353)),
    _kv_partial(128, loops(881, 896, 896, 841, 931, 860)),
    _kv_partial(64, loops(808, 808, 808, 800, 896, 781)),
    _plain("sla_kv_finish", "kv_prepare", "_kv_finish_kernel", _FINISH, 4, 1, D=128, ROWS=16, CHUNK=16),
    _plain("sla_pool", "block_selection", "_pool_kernel", _POOL, 4, 3, strides("x"), D=128, BLOCK=128),
    _plain("sla_score", "block_selection", "_score_kernel", _SCORE, 4, 2, D=128, BLOCK=64, CHUNK=16),
    _plain("sla_top_512", "block_selection", "_top_kernel", _TOP, 1, 3, WIDTH=512),
    _plain("sla_top_4096", "block_selection", "_top_kernel", _TOP, 8, 3, WIDTH=4096),
]

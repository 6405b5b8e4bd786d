"""The int8 quantizers and products as the launchers start them for a bfloat16 model."""

import triton.language as tl
from td_pack.kernels.int8.format import MIN_AMAX, TILE
from td_pack.kernels.int8.triton.quantize import ROWS
from td_pack.tests.support.aot import RDNA, TARGETS, Build, KernelCase, arguments, loops

MMA = dict.fromkeys(TARGETS, r"\bIMMA\.16832\.S8\.S8") | {
    "sm_90": r"\bIGMMA\.64x\d+x32\.S8\.S8",
    "sm_100": r"\bUTCIMMA|\bIMMA\.16832\.S8\.S8",  # the first from Triton 3.9 on
    "gfx942": r"mfma_i32\w*i8",
    **dict.fromkeys(RDNA, r"wmma_i32\w*iu8"),
}


def _quantize(name: str, loops: dict[str, int | None], **sizes: int) -> KernelCase:
    return KernelCase(
        name=name,
        module="kernels.int8.triton.quantize",
        function=f"_{name.removeprefix('int8_')}_kernel",
        signature=arguments(p_bf16="p_x", p_i8="p_codes", p_fp32="p_scales", i32="M K x_b x_m"),
        constexprs={"x_k": 1, "MIN_AMAX": MIN_AMAX, **sizes},
        divisible=("K", "x_b", "x_m"),
        fp_fusion=False,
        targets={target: Build(num_warps=4, num_stages=3, loop=loop) for target, loop in loops.items()},
    )


def _matmul(
    name: str,
    loops: dict[str, int | None],
    *,
    by: str = "block",
    channel: bool = False,
    y_by: str | None = None,
    narrow: bool = False,
    residual: bool = False,
) -> KernelCase:
    """`loops`: instructions of the loop, by target."""
    signature = arguments(p_i8="p_x p_w", p_fp32="p_x_scale p_w_scale", p_bf16="p_bias p_y", i32="B M N K")
    if y_by in ("block", "group"):
        signature |= arguments(p_i8="p_y", p_fp32="p_y_scale")
    if residual:
        signature |= arguments(p_bf16="p_residual p_gate")
    options = {
        "DTYPE": tl.bfloat16,
        "BY": by,
        "BY_CHANNEL": channel,
        "Y_BY": y_by,
        "WHOLE_K": True,
        "MIN_AMAX": MIN_AMAX,
        "TILE": TILE,
        "BLOCK_M": 128,
        "BLOCK_N": 64 if narrow else 256 if channel else 128,
        "BLOCK_K": 64 if channel else 128,
        "GROUP_M": 8,
    }
    return KernelCase(
        name=name,
        module="kernels.int8.triton.linear",
        function="_matmul_kernel",
        signature=signature,
        constexprs={key: None for key in ("p_y_scale", "p_residual", "p_gate") if key not in signature} | options,
        divisible=("N", "K"),
        fp_fusion=False,
        targets={
            target: Build(
                num_warps=16 if target in RDNA else 4 if narrow else 8,
                num_stages=1 if target in RDNA else 2 if target == "gfx942" else 4 if narrow or channel else 3,
                mma=MMA[target],
                loop=loop,
                constexprs={"MAGIC": target == "sm_80" and not channel},
            )
            for target, loop in loops.items()
        },
    )


CASES = [
    _quantize("int8_quantize_block", loops(2114, 2117, 2117, 2080, 1886, 2115), TILE=TILE),
    _quantize("int8_quantize_group", loops(556, 556, 556, 528, 478, 506), TILE=TILE, ROWS=ROWS),
    _quantize("int8_quantize_row", loops(1086, 1089, 1089, 1077, 980, 1102), WIDTH=8192),
    _matmul("int8_matmul_block", loops(283, 283, 283, 213, 244, 273)),
    _matmul("int8_matmul_group", loops(323, 311, 311, 215, 271, 285), by="group"),
    _matmul("int8_matmul_row", loops(281, 277, 277, 208, 238, 268), by="row"),
    _matmul("int8_matmul_block_narrow", {"sm_80": 309, "sm_86": 304, "sm_90": 239}, narrow=True),
    _matmul("int8_matmul_group_narrow", {"sm_80": 315, "sm_86": 311, "sm_90": 242}, by="group", narrow=True),
    _matmul("int8_matmul_row_narrow", {"sm_80": 303, "sm_86": 299, "sm_90": 233}, by="row", narrow=True),
    _matmul("int8_matmul_gelu_quantize", loops(283, 277, 277, 208, 244, 257), by="row", y_by="block"),
    _matmul("int8_matmul_gelu_quantize_group", loops(323, 305, 305, 213, 265, 282), by="group", y_by="group"),
    _matmul("int8_matmul_channel", loops(127, 127, 127, 73, 129, 121), by="row", channel=True),
    _matmul("int8_matmul_gelu_channel", loops(127, 127, 127, 73, 129, 121), by="row", channel=True, y_by="row"),
    _matmul(
        "int8_matmul_gate_residual_channel",
        loops(127, 127, 127, 74, 129, 121),
        by="row",
        channel=True,
        residual=True,
    ),
    _matmul("int8_matmul_gate_residual", loops(290, 281, 281, 212, 246, 271), residual=True),
    _matmul("int8_matmul_gate_residual_group", loops(323, 308, 308, 213, 270, 289), by="group", residual=True),
]

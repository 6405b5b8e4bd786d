"""Sage attention on bfloat16 tensors. fp8 needs sm_89, and AMD has fp16 alone. fp16 is left out where it is not the
default: int8 is faster there, and on sm_86 and sm_89 one register spills in fp16's loop.

The launch configs are those of the launchers; test_aot.py compares them."""

from td_pack.tests.support.aot import AMD, RDNA, TARGETS, Build, KernelCase, arguments, strides

INT8 = {"sm_90": "IGMMA.*S8", **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), r"IMMA\.16832\.S8")}
INT8["sm_100"] = r"UTCIMMA|IMMA\.16832\.S8"  # the first from Triton 3.9 on
FP8 = {
    "sm_89": r"QMMA\.16832\.F16\.E4M3",
    "sm_90": r"QGMMA\.64x\d+x32\.F32\.E4M3",
    "sm_100": "UTCQMMA",
    "sm_120": r"QMMA\.16832\.F16\.E4M3",
}
FP16 = {"sm_80": r"HMMA\.16816\.F32\b(?!\.BF16)", "sm_90": r"HGMMA\S*F32\b(?!\.BF16)", "sm_100": "UTCHMMA"}
FP16 |= {"gfx942": r"mfma_f32\S*_f16", **dict.fromkeys(RDNA, r"wmma_f32\S*_f16")}
MMA = {"fp16": FP16, "int8": INT8, "fp8": FP8}
V8 = {"fp16": "*fp16", "int8": "*i8", "fp8": "*fp8e4nv"}


def _launch(target: str, d: int) -> tuple[int, int]:
    """num_warps and num_stages."""
    if target in AMD:
        return 16 if target in RDNA and d == 128 else 8, 1
    return 8 if d == 128 else 4, 3


def _attention(
    pv: str, d: int, loops: dict[str, int], linear: bool = True, only: tuple[str, ...] = tuple(TARGETS)
) -> KernelCase:
    absent = ["p_values", "p_k_sum", "p_bias"] * (not linear) + ["p_v_scale"] * (pv == "fp16")
    signature = arguments(p_bf16="p_q p_o p_values p_bias", p_i8="p_k8", p_fp32="p_k_scale p_v_scale p_k_sum")
    signature |= {"p_v8": V8[pv]} | arguments(p_i32="p_blocks", i32="q_b q_l q_h L_Q L_K N_K T H", fp32="scale p_shift")
    constexprs = {"D": d, "BLOCK_Q": 128, "BLOCK_K": 64, "PV": pv, "LINEAR": linear}
    return KernelCase(
        name=f"sage_attention_{pv}_d{d}" + "_sparse" * (not linear),
        module="kernels.attention.triton.sage",
        function="_sage_kernel",
        signature={name: kind for name, kind in signature.items() if name not in absent},
        constexprs=constexprs | dict.fromkeys(absent),
        targets={
            target: Build(
                *_launch(target, d), mma, loops.get(target), constexprs={"SUM16": target in ("sm_89", "sm_120")}
            )
            for target, mma in MMA[pv].items()
            if target in only
        },
        divisible=strides("q"),
    )


def _quantize(pv: str) -> KernelCase:
    signature = arguments(p_bf16="p_k p_v", p_fp32="p_k_mean p_k_scale", p_i8="p_k8", i32="L H") | {"p_v8": V8[pv]}
    if pv != "fp16":
        signature["p_v_scale"] = "*fp32"
    return KernelCase(
        name=f"sage_kv_quantize_{pv}",
        module="kernels.attention.triton.kv_quantize",
        function="_kv_quantize_kernel",
        signature=signature | dict.fromkeys(strides("kv"), "i32"),
        constexprs={"D": 128, "BLOCK_K": 64, "PV": pv} | ({"p_v_scale": None} if pv == "fp16" else {}),
        targets=dict.fromkeys(MMA[pv], Build(4, 1)),
        divisible=strides("kv"),
    )


CASES = [
    _attention("fp16", 128, {"sm_80": 495, "sm_90": 374, "sm_100": 508}),
    _attention("int8", 128, {"sm_80": 564, "sm_86": 551, "sm_89": 551, "sm_90": 489, "sm_100": 504, "sm_120": 548}),
    _attention("fp8", 128, {"sm_89": 527, "sm_90": 385, "sm_100": 496, "sm_120": 511}),
    _attention("fp16", 64, {"sm_80": 682, "sm_90": 579, "sm_100": 777}),
    _attention("int8", 64, {"sm_80": 809, "sm_86": 793, "sm_89": 793, "sm_90": 756, "sm_100": 706, "sm_120": 791}),
    _attention("fp8", 64, {"sm_89": 748, "sm_90": 609, "sm_100": 756, "sm_120": 713}),
    _attention(
        "int8",
        128,
        {"sm_80": 571, "sm_86": 571, "sm_89": 571, "sm_90": 494, "sm_100": 502, "sm_120": 554},
        linear=False,
    ),
    _attention("fp8", 128, {"sm_89": 547, "sm_90": 390, "sm_100": 495, "sm_120": 518}, linear=False),
    *(_attention("fp16", d, {}, linear=False, only=AMD) for d in (128, 64)),
    *(_quantize(pv) for pv in MMA),
]

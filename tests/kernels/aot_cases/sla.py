"""Sparse-linear attention on bfloat16 tensors: attention, preparation of k and v, block map."""

from td_pack.tests.support.aot import Build, KernelCase

STRIDES = tuple(f"{x}_{axis}" for x in "qkv" for axis in "blh")
NVIDIA = {
    "sm_80": "HMMA",
    "sm_86": "HMMA",
    "sm_89": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
}
AMD = {"gfx942": "mfma", "gfx1100": "wmma"}


def _builds(loops, options, mma):
    return {
        target: Build(*options[target], mma=mma and mma[target], loop=loops.get(target))
        for target in options
    }


def _attention(d: int, linear: bool, loops: dict[str, int]) -> KernelCase:
    branch = "*bf16" if linear else "constexpr"
    none = {} if linear else dict.fromkeys(("p_values", "p_k_sum", "p_bias"))
    stages = {"sm_90": 3, "sm_100": 3}
    builds = {
        target: Build(4, 3, mma, loops.get(target)) if d == 64 else Build(8, stages.get(target, 2), mma, loops.get(target))
        for target, mma in {**NVIDIA, **AMD}.items()
    }
    if d == 128:
        builds["gfx1100"] = Build(4, 1, "wmma", constexprs={"TILE_Q": 64})
    return KernelCase(
        name=f"sla_attention_d{d}_{'linear' if linear else 'sparse'}",
        module="kernels.triton.block_sparse_attention",
        function="_attention_kernel",
        signature={
            **dict.fromkeys(("p_q", "p_k", "p_v"), "*bf16"),
            "p_blocks": "*i32",
            "p_o": "*bf16",
            "p_values": branch,
            "p_k_sum": "*fp32" if linear else "constexpr",
            "p_bias": branch,
            **dict.fromkeys(STRIDES, "i32"),
            **dict.fromkeys(("L_Q", "L_K", "N_Q", "T", "H"), "i32"),
            "scale": "fp32",
            **dict.fromkeys(("D", "BLOCK_Q", "BLOCK_K", "TILE_Q", "LINEAR"), "constexpr"),
        },
        constexprs={"D": d, "BLOCK_Q": 128, "BLOCK_K": 64, "TILE_Q": 128, "LINEAR": linear, **none},
        targets=builds,
        divisible=STRIDES,
    )


CASES = [
    _attention(128, True, {}),
    _attention(128, False, {}),
    _attention(64, True, {}),
    _attention(64, False, {}),
]

"""The norm kernels at the widths of Wan 1.3B and 14B: no tensor cores and no loop, so the whole kernel is counted."""

from ...support.aot import Build, KernelCase

_NVIDIA = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
_AMD = ("gfx942", "gfx1100")
_STRIDES = ("x_b", "x_l")
_MODULATION = ("shift_b", "shift_f", "scale_b", "scale_f")
_INSTRUCTIONS = {
    "rms_norm_rope-1536": (286, 286, 286, 293, 296, 293),
    "rms_norm_rope-5120": (399, 399, 399, 386, 387, 386),
    "layer_norm_modulate-1536": (331, 331, 331, 341, 330, 342),
    "layer_norm_modulate-5120": (442, 443, 443, 445, 421, 445),
    "layer_norm_modulate_quantize-1536": (541, 540, 540, 549, 519, 556),
    "layer_norm_modulate_quantize-5120": (782, 785, 785, 783, 719, 795),
    "layer_norm_statistics-1536": (None,) * 6,
    "layer_norm_statistics-5120": (None,) * 6,
    "layer_norm_modulate_quantize_block": (None,) * 6,
    "layer_norm_modulate_quantize_block_by_frame": (None,) * 6,
}


def _case(
    name: str, module: str, signature: dict, constexprs: dict, width: int, divisible: tuple, function: str = ""
) -> KernelCase:
    """`width` 0: the kernel takes any."""
    warps = 4 if width <= 2048 else 8
    name = f"{name}-{width}" if width else name
    nvidia = {target: Build(warps, 3, loop=loop) for target, loop in zip(_NVIDIA, _INSTRUCTIONS[name], strict=True)}
    return KernelCase(
        name=name,
        module=f"kernels.triton.{module}",
        function=f"_{function or module}_kernel",
        signature=signature | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        divisible=divisible,
        fp_fusion=bool(width),
        targets=nvidia | {target: Build(warps, 3) for target in _AMD},
    )


def _rope(heads: int, padded: int) -> KernelCase:
    signature = {"p_x": "*bf16", "p_weight": "*bf16", "p_freqs": "*fp32", "p_y": "*bf16", "eps": "fp32"}
    signature |= dict.fromkeys(("L", *_STRIDES), "i32")
    constexprs = {"HEADS": heads, "HEADS_PADDED": padded, "D": 128}
    return _case("rms_norm_rope", "rms_norm_rope", signature, constexprs, heads * 128, _STRIDES)


def _modulate(quantize: bool, width: int, padded: int) -> KernelCase:
    name = "layer_norm_modulate" + "_quantize" * quantize
    signature = dict.fromkeys(("p_x", "p_shift", "p_scale"), "*bf16")
    signature |= {"p_y": "*i8", "p_row_scales": "*fp32"} if quantize else {"p_y": "*bf16", "p_row_scales": "constexpr"}
    signature |= {"eps": "fp32"}
    signature |= dict.fromkeys(("L", "FRAME", *_STRIDES, *_MODULATION), "i32")
    constexprs = {"WIDTH": width, "WIDTH_PADDED": padded, "QUANTIZE": quantize} | (
        {} if quantize else {"p_row_scales": None}
    )
    return _case(name, "layer_norm_modulate", signature, constexprs, width, _STRIDES + _MODULATION)


def _statistics(width: int, padded: int) -> KernelCase:
    signature = {"p_x": "*bf16", "p_statistics": "*fp32", "eps": "fp32"} | dict.fromkeys(("L", *_STRIDES), "i32")
    constexprs = {"WIDTH": width, "WIDTH_PADDED": padded}
    return _case("layer_norm_statistics", "layer_norm_modulate", signature, constexprs, width, _STRIDES, "statistics")


def _quantize_block(one_frame: bool) -> KernelCase:
    signature = {"p_x": "*bf16", **dict.fromkeys(("p_statistics", "p_shift", "p_scale"), "*fp32")}
    signature |= {"p_codes": "*i8", "p_scales": "*fp32"}
    signature |= dict.fromkeys(("L", "FRAME", "WIDTH", *_STRIDES, *_MODULATION), "i32")
    constexprs = {"ONE_FRAME": one_frame, "MIN_AMAX": 1e-8, "TILE": 128}
    name = "layer_norm_modulate_quantize_block" + "_by_frame" * (not one_frame)
    divisible = ("WIDTH", *_STRIDES, *_MODULATION)
    return _case(name, "layer_norm_modulate", signature, constexprs, 0, divisible, "modulate_quantize_block")


CASES = [
    _rope(12, 16),
    _rope(40, 64),
    *(_statistics(*width) for width in ((1536, 2048), (5120, 8192))),
    *(_quantize_block(one_frame) for one_frame in (True, False)),
    *(_modulate(quantize, *width) for quantize in (False, True) for width in ((1536, 2048), (5120, 8192))),
]

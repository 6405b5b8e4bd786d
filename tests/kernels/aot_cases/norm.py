"""The norm kernels at the widths of Wan 1.3B and 14B: no tensor cores, no loop."""

from ...support.aot import Build, KernelCase

_TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx1100")
_STRIDES = ("stride_b", "stride_l")
_MODULATION = ("shift_stride_b", "shift_stride_f", "scale_stride_b", "scale_stride_f")


def _case(name: str, function: str, signature: dict, constexprs: dict, width: int, divisible: tuple) -> KernelCase:
    return KernelCase(
        name=f"{name}-{width}",
        module=f"kernels.triton.{function}",
        function=f"{function}_kernel",
        signature=signature | dict.fromkeys(constexprs, "constexpr"),
        constexprs=constexprs,
        divisible=divisible,
        targets={target: Build(4 if width <= 2048 else 8, 3, loop=0) for target in _TARGETS},
    )


def _rope(heads: int, padded: int) -> KernelCase:
    signature = {"x": "*bf16", "weight": "*bf16", "freqs": "*fp32", "out": "*bf16", "eps": "fp32"}
    signature |= dict.fromkeys(("length", *_STRIDES), "i32")
    constexprs = {"HEADS": heads, "HEADS_PADDED": padded, "D": 128}
    return _case("rms_norm_rope", "rms_norm_rope", signature, constexprs, heads * 128, _STRIDES)


def _modulate(quantize: bool, width: int, padded: int) -> KernelCase:
    name = "layer_norm_modulate" + "_quantize" * quantize
    signature = dict.fromkeys(("x", "shift", "scale"), "*bf16")
    signature |= {"out": "*i8", "row_scales": "*fp32"} if quantize else {"out": "*bf16", "row_scales": "constexpr"}
    signature |= {"eps": "fp32"}
    signature |= dict.fromkeys(("length", "tokens_per_frame", *_STRIDES, *_MODULATION), "i32")
    constexprs = {"WIDTH": width, "WIDTH_PADDED": padded, "QUANTIZE": quantize}
    return _case(name, "layer_norm_modulate", signature, constexprs, width, _STRIDES + _MODULATION)


CASES = [
    _rope(12, 16),
    _rope(40, 64),
    *(_modulate(quantize, *width) for quantize in (False, True) for width in ((1536, 2048), (5120, 8192))),
]

"""The norm kernels at the widths of Wan 1.3B, 14B and the VAE: no tensor cores, and where there is no loop the whole
kernel is counted."""

import triton

from ....kernels.int8.format import MIN_AMAX, TILE
from ....kernels.norm.triton.layer_norm import launch_config
from ...support.aot import Build, KernelCase, arguments, loops

_STRIDES = ("x_b", "x_l")
_MODULATION = ("shift_b", "shift_f", "scale_b", "scale_f")
_INSTRUCTIONS = {
    "rms_norm_rope-1536": (286, 286, 286, 293, 296, 293),
    "rms_norm_rope-5120": (399, 399, 399, 386, 387, 386),
    "layer_norm_modulate-1536": (288, 289, 289, 301, 277, 298),
    "layer_norm_modulate-5120": (522, 527, 527, 534, 473, 534),
    "layer_norm_modulate_quantize_group-1536": (556, 561, 561, 566, 518, 552),
    "layer_norm_modulate_quantize_group-5120": (1034, 1035, 1035, 1033, 869, 971),
    "layer_norm_modulate_quantize_row-1536": (486, 486, 486, 494, 468, 501),
    "layer_norm_modulate_quantize_row-5120": (817, 823, 823, 824, 742, 837),
    "layer_norm_statistics-1536": (191, 191, 191, 194, 194, 196),
    "layer_norm_statistics-5120": (318, 319, 319, 322, 322, 323),
    "layer_norm_modulate_quantize_block": (1640, 1641, 1641, 1631, 1430, 1650),
    "rms_norm_silu_pad-96": (687, 683, 683, 684, 686, 670),
    "rms_norm_silu_pad-192": (691, 691, 691, 698, 698, 678),
    "rms_norm_silu_pad-384": (713, 713, 713, 712, 714, 701),
    "rms_norm_silu_pad-96-first": (678, 678, 678, 659, 659, 655),
    "layer_norm_modulate_quantize_block_by_frame": (1248, 1246, 1246, 1254, 1154, 1263),
}


def _case(
    name: str,
    module: str,
    function: str,
    signature: dict,
    constexprs: dict,
    divisible: tuple,
    warps: int,
    fused: bool = True,
) -> KernelCase:
    return KernelCase(
        name=name,
        module=f"kernels.norm.triton.{module}",
        function=f"_{function}_kernel",
        signature=signature,
        constexprs=constexprs,
        divisible=divisible,
        fp_fusion=fused,
        targets={target: Build(warps, 3, loop=loop) for target, loop in loops(*_INSTRUCTIONS[name]).items()},
    )


def _warps(width: int) -> int:
    return 4 if width <= 2048 else 8


def _rope(heads: int, padded: int) -> KernelCase:
    signature = arguments(p_bf16="p_x p_weight p_y", p_fp32="p_freqs", fp32="eps", i32="L x_b x_l")
    constexprs = {"HEADS": heads, "HEADS_PADDED": padded, "D": 128}
    width = heads * 128
    name = "rms_norm_rope"
    return _case(f"{name}-{width}", "rms_norm", name, signature, constexprs, _STRIDES, _warps(width))


def _modulate(by: str | None, width: int) -> KernelCase:
    name = "layer_norm_modulate" + (f"_quantize_{by}" if by else "")
    signature = arguments(p_bf16="p_x", p_fp32="p_shift p_scale", fp32="eps")  # a TurboWan file's modulation
    signature |= arguments(p_i8="p_y", p_fp32="p_y_scales") if by else {"p_y": "*bf16"}
    signature |= dict.fromkeys(("L", "FRAME", *_STRIDES, *_MODULATION), "i32")
    parts, warps = _parts(width)
    constexprs = parts | {"BY": by, "MIN_AMAX": MIN_AMAX, "TILE": TILE} | ({} if by else {"p_y_scales": None})
    function = "layer_norm_modulate"
    return _case(
        f"{name}-{width}", "layer_norm", function, signature, constexprs, _STRIDES + _MODULATION, warps, by != "group"
    )


def _statistics(width: int) -> KernelCase:
    signature = arguments(p_bf16="p_x", p_fp32="p_statistics", fp32="eps", i32="L x_b x_l")
    parts, warps = _parts(width)
    name = f"layer_norm_statistics-{width}"
    return _case(name, "layer_norm", "statistics", signature, parts, _STRIDES, warps)


def _parts(width: int) -> tuple[dict[str, int], int]:
    """The constants and the warps of a kernel that holds a row of that width."""
    config = launch_config(width)
    warps = config.pop("num_warps")
    return {"WIDTH": width} | config, warps


def _quantize_block(one_frame: bool) -> KernelCase:
    signature = arguments(p_bf16="p_x", p_fp32="p_statistics p_shift p_scale p_scales", p_i8="p_codes")
    signature |= dict.fromkeys(("L", "FRAME", "WIDTH", *_STRIDES, *_MODULATION), "i32")
    constexprs = {"ONE_FRAME": one_frame, "MIN_AMAX": MIN_AMAX, "TILE": TILE}
    name = "layer_norm_modulate_quantize_block" + "_by_frame" * (not one_frame)
    divisible, warps = ("WIDTH", *_STRIDES, *_MODULATION), 8 if one_frame else 16
    function = "modulate_quantize_block"
    return _case(name, "layer_norm", function, signature, constexprs, divisible, warps, fused=False)


def _silu(channels: int, past: bool) -> KernelCase:
    """Of a chunk, channels last, at a width of the Wan VAE."""
    strides = [f"{name}_{axis}" for name in ("x", "past", "y") for axis in "btp"]
    padded = triton.next_power_of_2(channels)
    signature = arguments(p_bf16="p_x p_weight p_y" + " p_past" * past, fp32="scale")
    signature |= dict.fromkeys(("T", "PIXELS", *strides), "i32")
    constexprs = {"C": channels, "C_PADDED": padded, "BLOCK": 4096 // padded, "MIN_NORM": 1e-12}
    constexprs |= dict.fromkeys(("x_c", "past_c", "y_c"), 1) | ({} if past else {"p_past": None})
    name = f"rms_norm_silu_pad-{channels}" + "-first" * (not past)
    return _case(name, "rms_norm_silu", "rms_norm_silu_pad", signature, constexprs, tuple(strides), 4)


CASES = [
    *(_silu(channels, True) for channels in (96, 192, 384)),
    _silu(96, False),
    _rope(12, 16),
    _rope(40, 64),
    *(_statistics(width) for width in (1536, 5120)),
    *(_quantize_block(one_frame) for one_frame in (True, False)),
    *(_modulate(by, width) for by in (None, "group", "row") for width in (1536, 5120)),
]

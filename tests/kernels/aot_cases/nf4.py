"""Unpacking 4-bit weights at LingBot-World's block sizes: no tensor cores and no loop, so the whole kernel is
counted."""

from ...support.aot import Build, KernelCase, arguments, loops

_INSTRUCTIONS = {"double": (373, 381, 381, 394, 378, 421), "single": (362, 370, 370, 379, 363, 409)}


def _case(name: str, nested: bool) -> KernelCase:
    signature = arguments(p_u8="p_codes p_absmax", p_bf16="p_out", fp32="offset", i32="N BYTES B")
    signature |= arguments(p_fp32="p_map p_nested_absmax p_nested_map" + " p_absmax" * (not nested))
    constexprs = {"NESTED": nested, "BLOCKSIZE": 64, "NESTED_BLOCKSIZE": 256 if nested else 1, "BLOCKS": 64}
    return KernelCase(
        name=f"nf4_dequantize-{name}",
        module="kernels.nf4.triton",
        function="_nf4_dequantize_kernel",
        signature=signature,
        constexprs=constexprs,
        targets={target: Build(4, 3, loop=loop) for target, loop in loops(*_INSTRUCTIONS[name]).items()},
        divisible=("N", "BYTES"),
        fp_fusion=False,
    )


CASES = [_case("double", True), _case("single", False)]

"""What runs on the emulator: every operator with a Triton kernel, through the public entries, against its definition in
torch.

A case is a function of a compute capability (80, 89, ...) that gives measured errors with their bounds. `QUICK` cases
are those of the normal test run; shapes are small and ragged, since the emulator needs about a second for a few
thousand thread steps.

The bounds: codes and integer products are exact, so they are equal or differ by one where a product and a sum are fused
into one rounding. Attention in bfloat16 rounds the weights, the scores' inputs and the output, each by at most 2^-9
relative: an L2 error of about 2e-3 is expected and 4e-3 the bound (float16: an eighth of both).
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from td_pack import kernels
from td_pack.kernels.attention.reference.sla import block_map as reference_block_map

from .errors import Check, code_error, draw, relative, unequal

EPS = 1e-6
ROUNDED = {torch.bfloat16: 4e-3, torch.float16: 5e-4, torch.float32: 2e-6}
ALL = (80, 86, 89, 90, 100, 120)
# For 10.0 Triton compiles attention's products in 16 bits and fp8 to tcgen05 (alloc, mma, ld, st, commit, wait), with
# mbarrier (init, try_wait, inval) and elect.sync, none of which the emulator has. Products in int8 are mma.sync there.
WITHOUT_TENSOR_MEMORY = (80, 86, 89, 90, 120)
FP8 = (89, 90, 120)


@dataclass(frozen=True)
class Case:
    """`run(capability, on_kernels)` where `on_kernels(function)` calls the function with the Triton kernels on the
    emulator."""

    name: str
    operator: str
    run: Callable[[Callable], list[Check]]
    quick: bool = False
    capabilities: tuple[int, ...] = ALL
    sized: bool = True  # the launcher asks for the compute capability


# --- int8 -------------------------------------------------------------------------------------------------------------


def _quantize(shape, by, dtype, special=False):
    def run(on_kernels):
        x = draw(*shape, dtype=dtype)
        if special:
            x.view(-1)[3], x.view(-1)[-1], x.view(-1)[-2] = float("nan"), float("inf"), -0.0
        got, want = on_kernels(lambda: kernels.int8_quantize(x, by)), kernels.int8_quantize(x, by)
        checks = [Check("scales", unequal(got[1], want[1]), 0)]
        if by == "group":  # the codes of a group with NaN or Inf are of no consequence
            finite = want[1].isfinite().mT.repeat_interleave(128, -1)[..., : x.shape[-1]]
            got, want = ([codes * finite] for codes in (got[0], want[0]))
        return [*checks, Check("codes", unequal(got[0], want[0]), 0)]

    return run


def _product(m, n, k, epilogue, by="block", batch=1, dtype=torch.bfloat16, channel=False):
    def run(on_kernels):
        quantize = kernels.quantize_row if channel else kernels.quantize_block
        weight, bias = quantize(draw(n, k, seed=1, dtype=torch.float32) / k**0.5), draw(n, seed=2, dtype=dtype)
        x = draw(batch, m, k, dtype=dtype)
        if epilogue == "linear":
            call = partial(kernels.int8_linear, x, *weight, bias, by)
        else:
            codes = kernels.int8_quantize(x, by)
            gelu_by = "row" if channel else "group" if by == "group" else "block"
            residual, gate = draw(batch, m, n, seed=3, dtype=dtype), draw(batch, 1, n, seed=4, dtype=dtype)
            call = {
                "none": lambda: kernels.int8_matmul(*codes, *weight, bias, dtype),
                "gelu": lambda: kernels.int8_matmul_gelu_quantize(*codes, *weight, bias, dtype, gelu_by),
                "residual": lambda: kernels.int8_matmul_gate_residual(*codes, *weight, bias, residual, gate),
            }[epilogue]
        got, want = on_kernels(call), call()
        if epilogue == "gelu":
            return code_error(got, want)
        # The last scaling and addition are one rounding in the kernel, two in the definition.
        return [Check("relative", relative(got, want), ROUNDED[dtype] / 8)]

    return run


# --- attention --------------------------------------------------------------------------------------------------------


def _qkv(length, heads, d, dtype, keys=None, batch=1):
    q, k, v = draw(3, batch, length, heads, d, seed=length + d, dtype=dtype)
    return 2 * q, (k + draw(d, seed=1, dtype=dtype))[:, :keys], v[:, :keys]


def _attention(length, heads, d, topk, dtype=torch.bfloat16, pv="", keys=None, batch=1, linear=True):
    def run(on_kernels):
        q, k, v = _qkv(length, heads, d, dtype, keys, batch)
        weight, bias = (
            (draw(d, d, seed=5, dtype=dtype, scale=d**-0.5), draw(d, seed=6, dtype=dtype)) if linear else (None, None)
        )
        got = on_kernels(lambda: kernels.sparse_linear_attention(q, k, v, weight, bias, topk, pv))
        wide = [None if x is None else x.float() for x in (q, k, v, weight, bias)]
        want = kernels.sparse_linear_attention(*wide, topk, pv)
        # fp8, against the definition with the same codes: for 8.9 Triton converts a weight through float16, rounded
        # towards zero, so that one in about 2^8 rounds to the wrong neighbor, an eighth away: 2^-4 * 2^-3 at most over
        # the whole.
        extra = 4e-3 if pv == "fp8" else 0
        return [Check("relative", relative(got, want), ROUNDED[dtype] + extra)]

    return run


def _block_map(length, heads, d, topk, dtype=torch.bfloat16):
    def run(on_kernels):
        q, k, _ = _qkv(length, heads, d, dtype)
        got = on_kernels(
            lambda: importlib.import_module("td_pack.kernels.attention.triton.block_selection").block_map(q, k, topk)
        )
        want = reference_block_map(q, k, topk)
        return [Check("blocks that differ", unequal(got.long(), want.long()), 0)]

    return run


def _fused_views(on_kernels):
    """q, k and v as views of one projection, and keys of another length than the queries."""
    q, k, v = draw(2, 150, 3, 2, 64).unbind(2)
    got = on_kernels(lambda: kernels.sparse_linear_attention(q, k, v, None, None, 0.5))
    want = kernels.sparse_linear_attention(q.float(), k.float(), v.float(), None, None, 0.5)
    return [Check("relative", relative(got, want), ROUNDED[torch.bfloat16])]


# --- norms and 4-bit weights ------------------------------------------------------------------------------------------


def _rope(batch, length, heads, d=128, dtype=torch.bfloat16):
    def run(on_kernels):
        x, weight = draw(batch, length, heads * d, dtype=dtype), draw(heads * d, seed=1, dtype=dtype)
        angle = draw(length, d // 2, seed=2, dtype=torch.float32)
        freqs = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(1, length, 1, d // 2, 2, 2)
        call = partial(kernels.rms_norm_rope, x, weight, freqs, heads, EPS)
        return [Check("relative", relative(on_kernels(call), call()), ROUNDED[dtype])]

    return run


def _modulate(batch, length, width, frames, by=None, dtype=torch.bfloat16):
    def run(on_kernels):
        x = 3 * draw(batch, length, width, dtype=dtype) + 1
        shift, scale = draw(2, batch, frames, width, seed=1, dtype=torch.float32)
        if by is None:
            call = partial(kernels.layer_norm_modulate, x, shift, scale, EPS)
            return [Check("relative", relative(on_kernels(call), call()), ROUNDED[dtype])]
        call = partial(kernels.layer_norm_modulate_quantize, x, shift, scale, EPS, by)
        (codes, scales), (want, want_scales) = on_kernels(call), call()
        difference = (codes.int() - want.int()).abs()
        # float32 sums in another order move a value across a rounding boundary now and then
        return [
            Check("largest difference of codes", float(difference.max()), 1),
            Check("share of codes that differ", float((difference > 0).double().mean()), 2e-2),
            Check("scales", relative(scales, want_scales), 4e-3),
        ]

    return run


def _silu(channels, length, channels_last, dtype=torch.bfloat16):
    """A first frame of 3 x 7 pixels, then a chunk behind it."""

    def run(on_kernels):
        x = draw(2, 1 + length, 3, 7, channels, dtype=dtype).movedim(-1, 1)
        x, weight = x if channels_last else x.contiguous(), draw(channels, seed=1, dtype=dtype)
        checks, past, want_past = [], None, None
        for chunk in (x[:, :, :1], x[:, :, 1:]):
            got = on_kernels(lambda chunk=chunk, past=past: kernels.rms_norm_silu_pad(chunk, weight, past))
            want = kernels.rms_norm_silu_pad(chunk.float(), weight.float(), want_past)
            checks.append(Check("relative", relative(got, want), ROUNDED[dtype]))
            if past is None:
                past, want_past = (torch.cat((torch.zeros_like(y), y), 2) for y in (got, want))
        return [*checks, Check("past", unequal(past, got[:, :, -2:]), 0)]

    return run


def _nf4(rows, columns, nested, dtype):
    def run(on_kernels):
        generator, elements = torch.Generator().manual_seed(rows), rows * columns
        blocks = -(-elements // 64)
        codes = torch.randint(256, (-(-elements // 2),), generator=generator, dtype=torch.uint8)
        absmax = torch.rand(blocks, generator=generator)
        extra = (None, None)
        if nested:
            absmax = torch.randint(256, (blocks,), generator=generator, dtype=torch.uint8)
            extra = (torch.rand(-(-blocks // 256), generator=generator), torch.randn(256, generator=generator))
        table = torch.randn(16, generator=generator)
        sizes = (64, 256, rows, columns)
        call = partial(kernels.nf4_dequantize, codes, absmax, table, *extra, 0.25, *sizes, dtype)
        return [Check("values that differ", unequal(on_kernels(call), call()), 0)]

    return run


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def _name(dtype) -> str:
    return {BF16: "bf16", FP16: "fp16", FP32: "fp32"}[dtype]


def _cases() -> list[Case]:
    made = []

    def add(operator, name, run, **options):
        made.append(Case(f"{operator}-{name}", operator, run, **options))

    for by in ("block", "group", "row"):
        for shape, dtype, quick in (((1, 130, 200), BF16, True), ((2, 5, 129), FP16, False), ((300, 256), FP32, False)):
            name = f"{by}-{'x'.join(map(str, shape))}-{_name(dtype)}"
            add("int8_quantize", name, _quantize(shape, by, dtype), quick=quick, sized=False)
        add("int8_quantize", f"{by}-not-finite", _quantize((130, 130), by, BF16, True), sized=False)
        for m, n, k, batch in ((140, 200, 256, 1), (5, 130, 250, 2)):
            add(
                "int8_linear",
                f"{by}-{batch}x{m}x{n}x{k}",
                _product(m, n, k, "linear", by, batch),
                quick=m == 140 and by != "block",
            )
    for epilogue in ("none", "gelu", "residual"):
        for m, n, k, by, dtype in (
            (140, 200, 384, "group", BF16),
            (140, 136, 384, "block", BF16),
            (129, 128, 130, "row", FP16),
            (2050, 128, 128, "group", BF16),
        ):
            name = f"{epilogue}-{m}x{n}x{k}-{by}-{_name(dtype)}"
            add("int8_matmul", name, _product(m, n, k, epilogue, by, dtype=dtype), quick=n == 200)
        name = f"{epilogue}-140x272x200-channel-bf16"
        add("int8_matmul", name, _product(140, 272, 200, epilogue, "row", channel=True), quick=epilogue == "residual")
    add("block_map", "500-bf16", _block_map(500, 2, 128, 0.3), quick=True, sized=False)
    add("block_map", "1-fp16", _block_map(1, 1, 64, 1.0, FP16), sized=False)
    add("block_map", "2900-bf16", _block_map(2900, 1, 64, 0.1), sized=False)
    for pv in ("", "fp16", "int8", "fp8"):
        operator = f"attention {pv}" if pv else "attention"
        options = {"capabilities": FP8 if pv == "fp8" else WITHOUT_TENSOR_MEMORY}
        add(operator, "d128-391-bf16", _attention(391, 1, 128, 0.5, pv=pv), quick=True, **options)
        add(operator, "d64-200-bf16", _attention(200, 2, 64, 0.4, pv=pv), quick=not pv, **options)
        add(operator, "d64-500-fp16", _attention(500, 1, 64, 0.2, FP16, pv), **options)
        add(operator, "d128-1-bf16", _attention(1, 1, 128, 1.0, pv=pv), **options)
        sparse_only = options | ({"capabilities": ALL} if pv == "int8" else {})
        add(operator, "d128-700-sparse-only", _attention(700, 1, 128, 0.3, pv=pv, linear=False), **sparse_only)
        add(operator, "d64-130-keys-70-batch-2", _attention(130, 1, 64, 1.0, pv=pv, keys=70, batch=2), **options)
    add("attention", "fused-views", _fused_views, capabilities=WITHOUT_TENSOR_MEMORY)
    for heads, length, batch in ((2, 17, 2), (12, 3, 1), (40, 2, 1)):
        add("rms_norm_rope", f"{heads}-heads", _rope(batch, length, heads), quick=heads == 12, sized=False)
    for width, frames, length in ((256, 3, 17), (1536, 1, 5), (5120, 2, 3)):
        for by in (None, "block", "group", "row"):
            name = f"{width}-{frames}-frames" + (f"-{by}" if by else "")
            run = _modulate(2 if width == 256 else 1, length, width, frames, by)
            add("layer_norm_modulate", name, run, quick=width == 256, sized=False)
    for channels, length, last, dtype in ((96, 2, True, BF16), (384, 1, True, FP16), (6, 3, False, BF16)):
        name = f"{channels}-{length}-frames-{'last' if last else 'first'}-{_name(dtype)}"
        add("rms_norm_silu_pad", name, _silu(channels, length, last, dtype), quick=channels == 96, sized=False)
    for dtype in (BF16, FP32, FP16):
        for nested in (False, True):
            name = f"{'double' if nested else 'single'}-{_name(dtype)}"
            add("nf4_dequantize", name, _nf4(27, 37, nested, dtype), quick=dtype is BF16, sized=False)
    return made


CASES = {case.name: case for case in _cases()}

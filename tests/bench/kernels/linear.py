"""Int8 linears in each form of weights and activations against cuBLAS in bf16, fp8 and comfy_kitchen's int8, at the
shapes of Wan."""

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from ....kernels.int8 import reference
from ....kernels.int8.triton import linear as triton_linear
from ....kernels.int8.triton.linear import (
    int8_linear,
    int8_matmul,
    int8_matmul_gate_residual,
    int8_matmul_gelu_quantize,
)
from ....kernels.int8.triton.quantize import QUANTIZERS
from .clocks import Clocks
from .machine import floor_ms, peak
from .report import Row
from .timing import Clock

PHASE = "Int8 linear"
# rows, inputs, outputs: 14B 720p, 1.3B 480p, text tokens
SHAPES = (
    (75600, 5120, 5120),
    (75600, 5120, 13824),
    (75600, 13824, 5120),
    (32760, 1536, 1536),
    (32760, 1536, 8960),
    (32760, 8960, 1536),
    (512, 5120, 5120),
)
# Name: how the weight and the activation are quantized. The first and the last are what models run.
FORMS = {"group": ("block", "group"), "upstream": ("block", "block"), "channel": ("row", "row")}
# Against float64, of normally distributed values; quantizing alone gives 1.16e-2 (groups, channels), 1.34e-2 (blocks).
TOLERANCE = 2.5e-2
CHECKED_ROWS = 512


def measure(clock: Clock, clocks: Clocks, shapes=SHAPES) -> Iterator[Row]:
    for m, k, n in shapes:
        yield from _shape(clock, clocks, m, k, n)


def _shape(clock: Clock, clocks: Clocks, m: int, k: int, n: int) -> Iterator[Row]:
    device = clock.device
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    generator = torch.Generator(device).manual_seed(m + k + n)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    x, weight, bias = draw(m, k), draw(n, k) / k**0.5, draw(n)
    shape, flop = f"{m} x {k} -> {n}", 2 * m * k * n
    floor = floor_ms(peak(device), m * k * 2 + n * k + m * n * 2, int8=flop)
    exact = x[:CHECKED_ROWS].double() @ weight.double().T + bias.double()

    def error(y: torch.Tensor) -> float:
        return ((y[:CHECKED_ROWS].double() - exact).norm() / exact.norm()).item()

    def in_bf16() -> torch.Tensor:
        return F.linear(x, weight, bias)

    cublas = Row(PHASE, "bf16, cuBLAS", shape, clock.time(in_bf16), flop, error=error(in_bf16()))
    yield cublas
    kitchen = list(_comfy_kitchen(clock, x, weight, bias, shape, flop, error))
    by_kitchen = next((row.timing.ms for row in kitchen if row.timing), None)

    def together(runs: dict[str, Callable], checked: Callable) -> Iterator[Row]:
        """Rows of what is timed in turns with cuBLAS; the first of them is `checked`, and none is timed if it is
        wrong."""
        rows = [Row(PHASE, name, shape, flop=flop, floor=floor) for name in runs]
        rows[0].error = error(checked())
        if not rows[0].error <= TOLERANCE:
            rows[0].note = f"not timed: wrong, {TOLERANCE:.1e} is allowed"
            yield rows[0]
            return
        start = time.monotonic()
        times = clock.interleaved(runs | {"cublas": in_bf16})
        for row in rows:
            row.timing, row.clocks = times[row.operator], clocks.since(start)
            if "quantize," in row.operator:  # alone, it is no product
                row.flop = row.floor = None
                continue
            row.ratios = {"cublas": times["cublas"].ms / row.timing.ms}
            row.ratios |= {"comfy_kitchen": by_kitchen / row.timing.ms} if by_kitchen else {}
        yield from rows

    residual, gate = draw(1, m, n), draw(1, n)
    for form, (weight_by, by) in FORMS.items():
        layer = (*QUANTIZERS[weight_by](weight), bias)
        codes, scales = QUANTIZERS[by](x)
        whole = functools.partial(int8_linear, x, *layer, activation=by)
        runs = {f"int8, {form}, with quantizing": whole, f"  quantize, {form}": functools.partial(QUANTIZERS[by], x)}
        runs[f"  product alone, {form}"] = functools.partial(int8_matmul, codes, scales, *layer, out_dtype=dtype)
        if form == "upstream":
            yield from together(runs, whole)
            continue
        gelu = functools.partial(int8_matmul_gelu_quantize, codes, scales, *layer, out_dtype=dtype, by=by)
        runs[f"  product + GELU + quantize, {form}"] = gelu
        fused = functools.partial(int8_matmul_gate_residual, codes[None], scales[None], *layer)
        runs[f"  product + gate + residual, {form}"] = functools.partial(fused, residual=residual, gate=gate)
        yield from together(runs, whole)
        few = min(m, CHECKED_ROWS)
        part = codes[:few], scales[..., :few]  # of both forms the last dimension of the scales is the rows
        run = {each: each.int8_matmul(*part, *layer, out_dtype=dtype) for each in (triton_linear, reference)}
        share = (run[triton_linear] != run[reference]).float().mean().item()
        yield Row(PHASE, f"  product against its reference, {form}", shape, note=f"{share:.1e} of elements differ")
    yield from kitchen
    yield from _torch_products(clock, x, weight, codes, layer[0], shape, flop)


def _torch_products(clock: Clock, x, weight, codes, w8, shape: str, flop: float) -> Iterator[Row]:
    """torch's own: fp8 with a scale for each row, and the int8 product alone."""
    x8, weight8 = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
    scales = {
        "scale_a": torch.ones(len(x), 1, device=x.device),
        "scale_b": torch.ones(1, len(weight), device=x.device),
    }
    cases = {
        "fp8, torch._scaled_mm": lambda: torch._scaled_mm(x8, weight8.T, **scales, out_dtype=torch.bfloat16),
        "int8, torch._int_mm (no scales)": lambda: torch._int_mm(codes, w8.T),
    }
    for name, run in cases.items():
        row = Row(PHASE, name, shape, flop=flop)
        try:
            row.timing = clock.time(run)
        except RuntimeError as error:
            row.note = f"not here: {str(error).strip().splitlines()[0][:80]}"
        yield row


def _comfy_kitchen(clock: Clock, x, weight, bias, shape: str, flop: float, error) -> Iterator[Row]:
    """comfy_kitchen's int8_linear (a scale for each output channel) on its compiled and its Triton backend."""
    if importlib.util.find_spec("comfy_kitchen") is None:
        return
    import comfy_kitchen

    amax = weight.float().abs().amax(1)
    codes = (weight.float() / (amax / 127)[:, None]).round().to(torch.int8)
    for backend in ("cuda", "triton") if clock.device.type == "cuda" else ("eager",):
        row = Row(PHASE, f"int8, comfy_kitchen {backend}", shape, flop=flop)
        try:
            with comfy_kitchen.use_backend(backend):
                row.error = error(comfy_kitchen.int8_linear(x, codes, amax / 127, bias))
                row.timing = clock.time(lambda: comfy_kitchen.int8_linear(x, codes, amax / 127, bias))
        except (RuntimeError, ValueError, comfy_kitchen.BackendError) as reason:
            row.note = f"not here: {str(reason).strip().splitlines()[0][:80]}"
        yield row

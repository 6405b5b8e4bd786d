"""Sparse-linear attention against the best dense SDPA of the machine, at the lengths of 480p and 720p."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ....kernels.attention.format import BLOCK_K, BLOCK_Q
from ....kernels.attention.pv_format import sage_pv_format
from ....kernels.attention.triton.block_selection import block_map_pooled
from ....kernels.attention.triton.kv_prepare import kv_prepare
from ....kernels.attention.triton.kv_quantize import kv_quantize
from ....kernels.attention.triton.sage import sage_attention, sage_sparse_linear_attention
from ....kernels.attention.triton.sla import attend, sparse_linear_attention
from .clocks import Clocks
from .machine import floor_ms, peak
from .report import Row
from .timing import Clock

PHASE = "Attention"
SHAPES = ((32760, 12), (75600, 40))  # tokens and heads: 1.3B 480p, 14B 720p
TOPK = (0.1, 0.15, 0.05, 0.25)
WIDTH = 128
# Relative L2 error of the whole operator against float64, by the format of the product with v ("" is 16 bits).
TOLERANCE = {"": 4e-3, "fp16": 2.5e-2, "int8": 3.5e-2, "fp8": 6.5e-2}
SAMPLES = 16  # (head, query block) pairs that are computed in float64 where all would not fit
DENSE = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Inputs(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


def inputs(length: int, heads: int, device: torch.device, width: int = WIDTH) -> Inputs:
    """q, k and v whose neighboring tokens are similar, as in a video; the keys have the bias that sage attention
    subtracts."""
    generator = torch.Generator(device).manual_seed(length + heads)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def tokens() -> torch.Tensor:
        scenes = draw(1, math.ceil(length / 32), heads, width).to(dtype).repeat_interleave(32, 1)[:, :length]
        return torch.cat([scenes[:, :, i : i + 1] + 0.7 * draw(1, length, 1, width).to(dtype) for i in range(heads)], 2)

    q, k, v = tokens(), tokens(), tokens()
    return Inputs(
        1.5 * q, k + 2 * draw(width).to(dtype), v, (draw(width, width) / width**0.5).to(dtype), draw(width).to(dtype)
    )


def formats(device: torch.device) -> list[str]:
    """The formats of the product with v that this device can run."""
    if device.type != "cuda" or torch.version.hip is not None:
        return ["", "fp16"]
    eight = torch.cuda.get_device_capability(device) >= (8, 9) and sage_pv_format(device).name != "fp16"
    fastest = ["fp8"] if eight or torch.cuda.get_device_capability(device)[0] in (9, 10) else []
    return ["", "fp16", "int8", *fastest]


def operator(given: Inputs, topk: float, pv: str) -> torch.Tensor:
    """The whole operator on the Triton kernels."""
    if pv:
        return sage_sparse_linear_attention(*given, topk=topk, pv=pv)
    return sparse_linear_attention(*given, topk=topk)


def sampled_error(given: Inputs, topk: float, pv: str) -> float:
    """Relative L2 error of `operator` against float64 on the kernel's own block map, over sampled heads and query
    blocks."""
    q, k, v, weight, bias = given
    length, heads, width = q.shape[1:]
    out = operator(given, topk, pv)
    blocks = block_map_pooled(q, kv_prepare(k, v, weight).k_pooled, topk)
    generator = torch.Generator().manual_seed(0)
    actual, expected = [], []
    for head in torch.randperm(heads, generator=generator)[: max(1, SAMPLES // 4)].tolist():
        keys, values = k[0, :, head].double(), v[0, :, head].double()
        phi_k = keys.softmax(-1)
        key_values, k_sum = phi_k.T @ values, phi_k.sum(0)
        for tile in torch.randperm(blocks.shape[2], generator=generator)[:4].tolist():
            rows = slice(tile * BLOCK_Q, min((tile + 1) * BLOCK_Q, length))
            picked = (
                blocks[0, head, tile].long()[:, None] * BLOCK_K + torch.arange(BLOCK_K, device=q.device)
            ).flatten()
            picked = picked[picked < length]
            queries = q[0, rows, head].double()
            sparse = (queries @ keys[picked].T * width**-0.5).softmax(-1) @ values[picked]
            phi_q = queries.softmax(-1)
            linear = phi_q @ key_values / (phi_q @ k_sum + 1e-5)[:, None]
            expected.append(sparse + linear @ weight.double().T + bias.double())
            actual.append(out[0, rows, head].double())
    difference = torch.cat(actual) - torch.cat(expected)
    return (difference.norm() / torch.cat(expected).norm()).item()


def dense(given: Inputs, clock: Clock) -> tuple[dict[str, Row], Callable[[], torch.Tensor] | None]:
    """A row for each SDPA backend, and the fastest one's call."""
    length, heads, width = given.q.shape[1:]
    shape, flop = f"L={length} H={heads}", 4 * length**2 * heads * width
    q, k, v = (x.transpose(1, 2) for x in given[:3])

    def attend_all(backend: SDPBackend) -> torch.Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    rows, calls = {}, {}
    for name, backend in DENSE.items() if clock.device.type == "cuda" else [("math", SDPBackend.MATH)]:
        row = rows[name] = Row(PHASE, f"SDPA, {name}", shape, flop=flop)
        calls[name] = functools.partial(attend_all, backend)
        try:
            row.timing = clock.time(calls[name])
        except RuntimeError as error:
            row.note = f"not here: {str(error).strip().splitlines()[0][:80]}"
    times = {name: row.timing.ms for name, row in rows.items() if row.timing}
    return rows, calls[min(times, key=times.get)] if times else None


def measure(clock: Clock, clocks: Clocks, shapes=SHAPES, ratios=TOPK, width: int = WIDTH) -> Iterator[Row]:
    """Of each top-k all formats are timed in turns with the fastest SDPA, to which the ratios are."""
    chip = peak(clock.device)
    for length, heads in shapes:
        given = inputs(length, heads, clock.device, width)
        rows, fastest = dense(given, clock)
        yield from rows.values()
        shape = f"L={length} H={heads}"
        yield from parts(given, clock, ratios[0])
        for topk in ratios:
            selected = max(1, int(topk * math.ceil(length / BLOCK_K)))
            flop = 4 * length * selected * BLOCK_K * heads * width
            timed, wrong = {}, []
            for pv in formats(clock.device):
                row = Row(PHASE, f"sla {pv or '16-bit'}, top-k {topk}", shape, flop=flop)
                row.error = sampled_error(given, topk, pv)
                # int8 scores are half of the arithmetic; the inputs are read once and the output is written
                eight = flop * (0 if not pv else 0.5 if pv == "fp16" else 1)
                row.floor = floor_ms(chip, 4 * 2 * length * heads * width, bf16=flop - eight, int8=eight)
                if row.error <= TOLERANCE[pv]:
                    timed[pv] = row
                else:
                    row.note = f"not timed: wrong, {TOLERANCE[pv]:.1e} is allowed"
                    wrong.append(row)
            runs = {pv: functools.partial(operator, given, topk, pv) for pv in timed}
            start = time.monotonic()
            times = clock.interleaved(runs | ({"sdpa": fastest} if fastest and runs else {})) if runs else {}
            for pv, row in timed.items():
                row.timing, row.clocks = times[pv], clocks.since(start)
                row.ratios = {"sdpa": times["sdpa"].ms / times[pv].ms} if fastest else {}
            yield from [*timed.values(), *wrong]


def parts(given: Inputs, clock: Clock, topk: float) -> Iterator[Row]:
    """A row for each part of the operator: preparing keys and values, the block map, quantizing, attending."""
    q, k, v, weight, bias = given
    shape = f"L={q.shape[1]} H={q.shape[2]}"

    def row(name: str, run) -> Row:
        return Row(PHASE, f"  {name}, top-k {topk}", shape, timing=clock.time(run))

    prepared = kv_prepare(k, v, weight)
    blocks = block_map_pooled(q, prepared.k_pooled, topk)
    yield row("prepare keys and values", lambda: kv_prepare(k, v, weight))
    yield row("block map", lambda: block_map_pooled(q, prepared.k_pooled, topk))
    yield row("attend, 16-bit, sparse alone", lambda: attend(q, k, v, blocks, None, None, BLOCK_Q, BLOCK_K))
    yield row("attend, 16-bit", lambda: attend(q, k, v, blocks, prepared, bias, BLOCK_Q, BLOCK_K))
    for pv in formats(clock.device)[1:]:
        quantize = functools.partial(kv_quantize, k, v, prepared.k_mean, prepared.v_max, pv=pv)
        yield row(f"quantize, {pv}", quantize)
        quantized, linear = quantize(), (prepared.values, prepared.k_sum, bias)
        attend8 = functools.partial(sage_attention, q, *quantized, blocks, k.shape[1], pv=pv, linear=linear)
        yield row(f"attend, {pv}", attend8)

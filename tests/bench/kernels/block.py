"""One transformer block of the 14B network at 720p: dense in bf16, then with more of it on this pack's kernels. The
last two are what `TurboBlock` runs, on weights with a scale for each tile and for each output channel."""

import functools
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ....kernels.attention.pv_format import fastest_format
from ....kernels.attention.triton.sage import sage_sparse_linear_attention
from ....kernels.attention.triton.sla import sparse_linear_attention
from ....kernels.int8.triton.linear import (
    int8_linear,
    int8_matmul,
    int8_matmul_gate_residual,
    int8_matmul_gelu_quantize,
)
from ....kernels.int8.triton.quantize import QUANTIZERS
from ....kernels.norm import reference
from ....kernels.norm.triton.layer_norm import layer_norm_modulate, layer_norm_modulate_quantize
from ....kernels.norm.triton.rms_norm import rms_norm_rope
from .clocks import Clocks
from .report import Row
from .timing import Clock

PHASE = "One block"
SIZES = {"length": 75600, "heads": 40, "width": 128, "ffn": 13824, "text": 512}  # 14B, 720p
TOPK = 0.1
EPS = 1e-6
VARIANTS = (
    "dense bf16",
    "int8 + sla, torch between",
    "int8 + sla, fused norms",
    "int8 + sla, as TurboBlock runs it",
    "the same, weights by channel",
)
# Of the last two: how weights and activations are quantized.
FORMS = dict(zip(VARIANTS[3:], (("block", "group"), ("row", "row")), strict=True))
# Of the whole block against dense bf16 nothing can be said (sparse attention differs); the fused ones against the first
# int8 one.
TOLERANCE = 5e-2


class Block:
    """The arithmetic of a Wan block on random weights: self-attention, cross-attention, feed-forward."""

    def __init__(self, device: torch.device, length: int, heads: int, width: int, ffn: int, text: int):
        generator = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
        dim = heads * width

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        names = ("q", "k", "v", "o", "cross_q", "cross_k", "cross_v", "cross_o")
        self.weights = {name: draw(dim, dim) / dim**0.5 for name in names}
        self.weights |= {"up": draw(ffn, dim) / dim**0.5, "down": draw(dim, ffn) / ffn**0.5}
        self.biases = {name: draw(len(weight)) / 8 for name, weight in self.weights.items()}
        self.codes = {
            by: {name: QUANTIZERS[by](weight) for name, weight in self.weights.items()} for by in ("block", "row")
        }
        self.pv = fastest_format(device).name if device.type == "cuda" else ""
        self.heads, self.width = heads, width
        self.gain, self.affine = 1 + draw(dim) / 8, (1 + draw(dim) / 8, draw(dim) / 8)
        self.projection = (draw(width, width) / width**0.5, draw(width) / 8)
        self.x, self.text = draw(1, length, dim), draw(1, text, dim)
        # shift, scale, gate of self-attention, then of the feed-forward
        self.modulation = [part / 8 for part in torch.randn(6, 1, 1, dim, generator=generator, device=device)]
        angles = torch.rand(1, length, 1, width // 2, generator=generator, device=device) * 6
        self.freqs = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))

    def run(self, variant: str) -> torch.Tensor:
        dense, norms = variant == VARIANTS[0], variant in VARIANTS[2:]
        if variant in FORMS:
            return self._fused(*FORMS[variant])

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            if dense:
                return F.linear(x, self.weights[name], self.biases[name])
            return int8_linear(x, *self.codes["block"][name], self.biases[name], activation="group")

        modulate = layer_norm_modulate if norms else reference.layer_norm_modulate
        rotate = rms_norm_rope if norms else reference.rms_norm_rope
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation
        x = self.x
        y = modulate(x, shift, scale, eps=EPS)
        q, k = (rotate(linear(name, y), self.gain, self.freqs, heads=self.heads, eps=EPS) for name in "qk")
        v = linear("v", y).unflatten(-1, (self.heads, self.width))
        x = torch.addcmul(x, linear("o", _attention(q, k, v, None if dense else self.projection)), gate.to(x.dtype))
        q = F.rms_norm(linear("cross_q", self._plain_norm(x)), self.gain.shape, self.gain, EPS)
        x = x + linear("cross_o", self._cross(q, linear))
        y = F.gelu(linear("up", modulate(x, ffn_shift, ffn_scale, eps=EPS)), approximate="tanh")
        return torch.addcmul(x, linear("down", y), ffn_gate.to(x.dtype))

    def _fused(self, weights: str, by: str) -> torch.Tensor:
        """Each activation is quantized once, where it is made; gates and residuals are added where the product ends."""
        quantize = QUANTIZERS[by]

        def product(name: str, codes, **epilogue) -> torch.Tensor:
            run = int8_matmul_gate_residual if epilogue else int8_matmul
            return run(
                *codes, *self.codes[weights][name], self.biases[name], **(epilogue or {"out_dtype": self.x.dtype})
            )

        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation
        x = self.x
        y = layer_norm_modulate_quantize(x, shift, scale, eps=EPS, by=by)
        q, k = (rms_norm_rope(product(name, y), self.gain, self.freqs, heads=self.heads, eps=EPS) for name in "qk")
        v = product("v", y).unflatten(-1, (self.heads, self.width))
        x = product("o", quantize(_attention(q, k, v, self.projection, self.pv)), residual=x, gate=gate)
        affine = [each.float()[None, None] for each in self.affine]
        y = layer_norm_modulate_quantize(x, affine[1], affine[0] - 1, eps=EPS, by=by)
        q = F.rms_norm(product("cross_q", y), self.gain.shape, self.gain, EPS)
        attended = self._cross(q, lambda name, text: product(name, quantize(text)))
        x = product("cross_o", quantize(attended), residual=x, gate=torch.ones_like(gate))
        y = layer_norm_modulate_quantize(x, ffn_shift, ffn_scale, eps=EPS, by=by)
        y = int8_matmul_gelu_quantize(*y, *self.codes[weights]["up"], self.biases["up"], out_dtype=x.dtype, by=by)
        return product("down", y, residual=x, gate=ffn_gate)

    def _plain_norm(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], *self.affine, EPS)

    def _cross(self, q: torch.Tensor, linear) -> torch.Tensor:
        k, v = F.rms_norm(linear("cross_k", self.text), self.gain.shape, self.gain, EPS), linear("cross_v", self.text)
        return _attention(*(x.unflatten(-1, (self.heads, self.width)) for x in (q, k, v)), None)


def _attention(q, k, v, projection, pv: str = "") -> torch.Tensor:
    """[B, L, H, D] each -> [B, L, H * D]; sparse-linear with a projection, else dense. `pv` as in pv_format.py."""
    if projection is not None and pv:
        return sage_sparse_linear_attention(q, k, v, *projection, topk=TOPK, pv=pv).flatten(2)
    if projection is not None:
        return sparse_linear_attention(q, k, v, *projection, topk=TOPK).flatten(2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def measure(clock: Clock, clocks: Clocks, sizes=SIZES) -> Iterator[Row]:
    """All variants in turns, after a pass of each in which its error and its memory are found."""
    block = Block(clock.device, **sizes)
    cuda = clock.device.type == "cuda"
    shape = " ".join(f"{name}={value}" for name, value in sizes.items())
    expected = block.run(VARIANTS[1]).float()
    rows = []
    for variant in VARIANTS:
        row = Row(PHASE, variant, shape)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        result = block.run(variant)
        if cuda:
            torch.cuda.synchronize()
            row.peak_gb = (torch.cuda.max_memory_allocated() - held) / 1e9
        if variant in VARIANTS[2:]:
            row.error = ((result.float() - expected).norm() / expected.norm()).item()
            row.note = f"error: against {VARIANTS[1]}"
        if row.error is not None and not row.error <= TOLERANCE:
            row.note = f"not timed: wrong, {TOLERANCE:.1e} is allowed"
            yield row
        else:
            rows.append(row)
    start = time.monotonic()
    times = clock.interleaved({row.operator: functools.partial(block.run, row.operator) for row in rows})
    for row in rows:
        row.timing, row.clocks = times[row.operator], clocks.since(start)
        row.ratios = {"dense": times[VARIANTS[0]].ms / row.timing.ms}
        yield row

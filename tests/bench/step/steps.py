"""A step of a text-to-video model: one pass through the network with this pack's weights and attention, and through
ComfyUI's stock network in bf16 with the fastest SDPA of the device, timed in turns."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..kernels import attention
from ..kernels.clocks import Clocks
from ..kernels.report import Row
from ..kernels.timing import Clock
from . import models
from .operators import OperatorTimes

TOPK = 0.1
LISTED = 0.01  # an operator's share of the step from which on it has a row of its own
FREE = 12e9  # bytes that activations may need beside the weights


class Case(NamedTuple):
    """A model and the shape of its latent [16, frames, height, width]; `seconds` that its rounds may take."""

    name: str
    size: dict[str, int]
    latent: tuple[int, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        frames, height, width = self.latent[1:]
        return frames * (height // 2) * (width // 2)


SMALL = Case("T2V 1.3B 480p", {"dim": 1536, "ffn_dim": 8960, "layers": 30}, (16, 21, 60, 104), 30.0)
LARGE = Case("T2V 14B 720p", {"dim": 5120, "ffn_dim": 13824, "layers": 40}, (16, 21, 90, 160), 150.0)
TINY = Case("T2V tiny", {"dim": 256, "ffn_dim": 256, "layers": 1}, (16, 2, 16, 16), 1.0)


@dataclass
class Variant:
    """Weights in a format of `models`, with an attention mode of the pack."""

    weights: str
    mode: str = ""

    @property
    def name(self) -> str:
        if self.weights == models.STOCK:
            return "stock bf16, best SDPA"
        kind = {"int8_block": "tiles", "int8_rowwise": "channels"}[self.weights]
        attention = {"sla": "16-bit", "sagesla": "8-bit", "dense": "dense"}[self.mode]
        return f"int8 {kind}, {attention} attention"


STOCK = Variant(models.STOCK)
# Timed in turns, the most valuable first.
TIMED = [Variant(weights, mode) for weights in ("int8_block", "int8_rowwise") for mode in ("sagesla", "sla")]
DENSE = [Variant(weights, "dense") for weights in ("int8_block", "int8_rowwise")]


class Models:
    """The loaded models of a case by the format of their weights, and one pass through any of them."""

    def __init__(self, case: Case, device: torch.device, folder: Path):
        self.case, self.device, self._folder = case, device, folder
        self.loaded: dict[str, object] = {}
        self._sdpa: list[SDPBackend] = []
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        generator = torch.Generator(device).manual_seed(0)
        self._x = torch.randn(1, *case.latent, generator=generator, device=device)
        self._text = torch.randn(1, 512, 4096, generator=generator, device=device).to(dtype)

    def load(self, formats: list[str]) -> list[str]:
        """Loads and fills those that fit beside each other; returns the rest."""
        import comfy.model_management

        left_out = []
        free = comfy.model_management.get_free_memory(self.device) - FREE * (self.device.type == "cuda")
        for weights in formats:
            path = models.write_empty(self._folder / f"{self.case.name} {weights}.safetensors", weights, self.case.size)
            free -= models.memory_needed(path)
            if free < 0:
                left_out.append(weights)
                continue
            self.loaded[weights] = models.load(path, weights, self.device)
        comfy.model_management.load_models_gpu(list(self.loaded.values()), force_full_load=True)
        for patcher in self.loaded.values():
            models.fill(patcher, 0)
        return left_out

    def best_sdpa(self, clock: Clock) -> Iterator[Row]:
        """A row for each backend at the shape of a layer; the fastest is what the stock model then runs with."""
        heads = self.case.size["dim"] // attention.WIDTH
        rows, _ = attention.dense(attention.inputs(self.case.tokens, heads, self.device), clock)
        backends = attention.DENSE if self.device.type == "cuda" else {"math": SDPBackend.MATH}
        timed = sorted((name for name in rows if rows[name].timing), key=lambda name: rows[name].timing.ms)
        # Those after the first are for what the first cannot run, cross-attention perhaps.
        self._sdpa = [backends[name] for name in timed]
        for row in rows.values():
            row.phase, row.operator = self.case.name, f"{row.operator}, one layer"
            yield row

    def step(self, variant: Variant, frames: int | None = None) -> torch.Tensor:
        """The velocity [1, 16, frames, height, width] that the network predicts, of the first `frames` of the latent or
        of all."""
        import comfy.utils
        from td_pack.turbo_core.host.attention_patch import with_attention

        patcher = self.loaded[variant.weights]
        options = {}
        if variant.weights == models.STOCK:
            options["optimized_attention_override"] = self._attend
        else:
            # As ComfyUI applies what with_attention sets, without its loading and unloading of clones.
            patches = with_attention(patcher, variant.mode, TOPK, "", False).object_patches
            for name, value in patches.items():
                comfy.utils.set_attr(patcher.model, name, value)
        with torch.inference_mode():
            return patcher.model.apply_model(
                self._x[:, :, :frames],
                torch.tensor([0.98765], device=self.device),
                c_crossattn=self._text,
                transformer_options=options,
            )

    def _attend(self, function, *args, **kwargs) -> torch.Tensor:
        """ComfyUI's attention function with the SDPA backends in the order of their speed here."""
        q, k, v, heads = *args, *(kwargs[name] for name in ("q", "k", "v", "heads")[len(args) :])
        if q.ndim != 3 or kwargs.get("mask") is not None:
            return function(*args, **kwargs)
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(self._sdpa, set_priority=True):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def free(self) -> None:
        """Gives all memory back."""
        import comfy.model_management

        self.loaded.clear()
        gc.collect()
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache(force=True)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def reference_error(made: Models, variant: Variant) -> tuple[float, str]:
    """Relative L2 of the velocity of a short latent against the pack's operators in plain torch, and the note that says
    so."""
    from td_pack.kernels import use_backend

    frames = min(2, made.case.latent[1])
    with use_backend("torch"):
        expected = made.step(variant, frames)
    return relative_error(made.step(variant, frames), expected), f"error: {frames} latent frames, against plain torch"


def measure(clock: Clock, clocks: Clocks, case: Case, folder: Path) -> Iterator[Row]:
    """The rows of a case: the steps first, then their operators, then dense attention on int8 weights."""
    made = Models(case, clock.device, folder)
    try:
        yield from _measured(made, clock, clocks)
    finally:
        made.free()


def _measured(made: Models, clock: Clock, clocks: Clocks) -> Iterator[Row]:
    case = made.case
    shape = f"L={case.tokens} " + " ".join(f"{name}={value}" for name, value in case.size.items())
    began = time.monotonic()
    for weights in made.load([models.STOCK, "int8_block", "int8_rowwise"]):
        yield Row(case.name, f"{weights} weights", shape, note="not here: they do not fit into free memory")
    loaded = time.monotonic() - began
    yield Row(case.name, "loading and drawing weights", shape, note=f"{loaded:.1f} s, of zeros: no user's time")
    if models.STOCK in made.loaded:
        yield from made.best_sdpa(clock)
    rows: dict[str, Row] = {}
    runs: dict[str, Callable[[], object]] = {}
    for variant in [*TIMED, STOCK]:
        if variant.weights not in made.loaded:
            continue
        row = Row(case.name, variant.name, shape)
        try:
            if variant != STOCK:
                row.error, row.note = reference_error(made, variant)
            row.peak_gb, first = _first(made, variant, short=variant == STOCK)
            row.note = f"{row.note}; first pass {first:.1f} s".removeprefix("; ")
            rows[variant.name], runs[variant.name] = row, lambda variant=variant: made.step(variant)
        except RuntimeError as error:
            row.note = _refused(error)
            yield row
    start = time.monotonic()
    for name, timing in clock.interleaved(runs, case.seconds).items():
        rows[name].timing, rows[name].clocks = timing, clocks.since(start)
    stock = rows.get(STOCK.name)
    for row in rows.values():
        if stock and stock.timing and row is not stock:
            row.ratios = {"stock": stock.timing.ms / row.timing.ms}
        yield row
    for variant in [*TIMED, STOCK]:
        if variant.name in rows:
            yield from operators(made, variant, shape)
    yield from _dense(made, clock, rows.get(STOCK.name), shape)


def _first(made: Models, variant: Variant, short: bool) -> tuple[float | None, float]:
    """GB of memory that a pass takes over what is allocated before it, and its seconds, in which kernels are compiled.
    `short`: two latent frames only, which is enough to warm up what compiles nothing, without the memory."""
    began = time.monotonic()
    cuda = made.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    made.step(variant, min(2, made.case.latent[1]) if short else None)
    if not cuda:
        return None, time.monotonic() - began
    torch.cuda.synchronize()
    seconds = time.monotonic() - began
    return None if short else (torch.cuda.max_memory_allocated() - held) / 1e9, seconds


def operators(made: Models, variant: Variant, shape: str) -> Iterator[Row]:
    """A row for each operator that takes LISTED of a step or more, and one for the others."""
    with OperatorTimes(made.device) as times:
        made.step(variant)
    found = times.read()
    total = sum(operator.ms for operator in found)
    for operator in found:
        if operator.ms >= LISTED * total:
            note = f"{operator.ms:.2f} ms in {operator.calls} calls, {operator.ms / total:.1%} of the operators' time"
            yield Row(f"{made.case.name}: operators", f"{variant.name}: {operator.name}", shape, note=note)
    rest = [operator for operator in found if operator.ms < LISTED * total]
    note = f"{sum(each.ms for each in rest):.2f} ms in {sum(each.calls for each in rest)} calls; all {total:.2f} ms"
    yield Row(f"{made.case.name}: operators", f"{variant.name}: the others", shape, note=note)


def _dense(made: Models, clock: Clock, stock: Row | None, shape: str) -> Iterator[Row]:
    """Int8 weights with ComfyUI's dense attention, which says what int8 costs in accuracy: one pass, no warm-up of this
    shape."""
    for variant in DENSE:
        if variant.weights not in made.loaded or stock is None:
            continue
        if clock.left() < 2 * stock.timing.ms / 1e3:
            return
        row = Row(made.case.name, variant.name, shape)
        frames = min(2, made.case.latent[1])
        row.error = relative_error(made.step(variant, frames), made.step(STOCK, frames))
        ms = clock.once(lambda variant=variant: made.step(variant))
        row.note = f"{ms:.1f} ms in one pass; error: {frames} latent frames, against stock bf16"
        row.ratios = {"stock": stock.timing.ms / ms}
        yield row


def _refused(error: RuntimeError) -> str:
    torch.cuda.empty_cache()
    return f"not here: {str(error).strip().splitlines()[0][:120]}"

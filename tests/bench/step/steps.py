"""A step of a text-to-video model: one pass through the network with this pack's weights and attention, and through
ComfyUI's stock network in bf16 with the fastest SDPA of the device, timed in turns."""

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..kernels import attention
from ..kernels.clocks import Clocks
from ..kernels.report import Row
from ..kernels.timing import Clock, single
from . import models
from .operators import Operator, OperatorTimes

TOPK = 0.1
LISTED = 0.01  # an operator's share of the step from which on it has a row of its own
FREE = 12e9  # bytes that activations may need beside the weights


class Case(NamedTuple):
    """A model and the shape of its latent [16, frames, height, width]. `seconds`: what its rounds may take; `reserve`:
    what is kept for the parts after it; `checked`: the latent frames on which the pack's operators are compared with
    their references in plain torch, of which some compute in float64 and all need memory."""

    name: str
    size: dict[str, int]
    latent: tuple[int, ...]
    seconds: float
    reserve: float
    checked: int

    @property
    def tokens(self) -> int:
        frames, height, width = self.latent[1:]
        return frames * (height // 2) * (width // 2)


SMALL = Case("T2V 1.3B 480p", {"dim": 1536, "ffn_dim": 8960, "layers": 30}, (16, 21, 60, 104), 30.0, 330.0, 1)
LARGE = Case("T2V 14B 720p", {"dim": 5120, "ffn_dim": 13824, "layers": 40}, (16, 21, 90, 160), 90.0, 150.0, 0)
TINY = Case("T2V tiny", {"dim": 256, "ffn_dim": 256, "layers": 1}, (16, 3, 16, 16), 1.0, 0.0, 2)


class Variant(NamedTuple):
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
DENSE = Variant("int8_block", "dense")
SHORT = 2  # latent frames of a pass that only warms up, or only compares


class Models:
    """The loaded models of a case by the format of their weights, and one pass through any of them."""

    def __init__(self, case: Case, device: torch.device, folder: Path):
        self.case, self.device, self._folder = case, device, folder
        self.loaded: dict[str, object] = {}
        self._sdpa: list[SDPBackend] = []
        self._patches: dict[Variant, dict[str, object]] = {}
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

        patcher = self.loaded[variant.weights]
        options = {}
        if variant.weights == models.STOCK:
            options["optimized_attention_override"] = self._attend
        else:
            for name, value in self._attention(variant).items():  # as ComfyUI applies the patches of a clone it loads
                comfy.utils.set_attr(patcher.model, name, value)
        with torch.inference_mode():
            return patcher.model.apply_model(
                self._x[:, :, :frames],
                torch.tensor([0.98765], device=self.device),
                c_crossattn=self._text,
                transformer_options=options,
            )

    def _attention(self, variant: Variant) -> dict[str, object]:
        """What the attention node sets in the model, by name."""
        from td_pack.turbo_core.host.attention_patch import with_attention

        if variant not in self._patches:
            clone = with_attention(self.loaded[variant.weights], variant.mode, TOPK, "", False)
            self._patches[variant] = clone.object_patches
        return self._patches[variant]

    def _attend(self, function, *args, **kwargs) -> torch.Tensor:
        """ComfyUI's attention function with the SDPA backends in the order of their speed here."""
        q, k, v, heads = *args, *(kwargs[name] for name in ("q", "k", "v", "heads")[len(args) :])
        if q.ndim != 3 or kwargs.get("mask") is not None:
            return function(*args, **kwargs)
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(self._sdpa, set_priority=True):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def free(self) -> None:
        """Gives all memory back; without ComfyUI's unloading, which would copy the weights to the CPU."""
        import comfy.model_management

        self.loaded.clear()
        gc.collect()
        comfy.model_management.cleanup_models()
        comfy.model_management.soft_empty_cache(force=True)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def reference_error(made: Models, variant: Variant) -> tuple[float, str]:
    """Relative L2 of the velocity of a short latent against the pack's operators in plain torch, and the note that says
    so."""
    from td_pack.kernels import use_backend

    frames = made.case.checked
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
    loaded = single(1e3 * (time.monotonic() - began))
    yield Row(case.name, "loading and drawing weights", shape, loaded, note="no part of a user's job")
    if models.STOCK in made.loaded:
        yield from made.best_sdpa(clock)
    rows, runs = {}, {}
    for row, variant in _first_passes(made, shape):
        if variant is None:
            yield row
        else:
            rows[variant], runs[variant.name] = row, lambda variant=variant: made.step(variant)
    start = time.monotonic()
    times = clock.interleaved(runs, min(case.seconds, clock.left() - case.reserve), warm_ups=0)
    stock = times.get(STOCK.name)
    for variant, row in rows.items():
        row.timing, row.clocks = times[variant.name], clocks.since(start)
        row.ratios = {"stock": stock.ms / row.timing.ms} if stock and variant != STOCK else {}
        yield row
    for variant, row in rows.items():
        if clock.left() - case.reserve > 2 * row.timing.ms / 1e3:
            yield from operators(made, variant, row)
    if {STOCK, TIMED[0]} <= rows.keys() and clock.left() - case.reserve > 2 * stock.ms / 1e3:
        yield _dense(made, clock, stock.ms, shape)


def _first_passes(made: Models, shape: str) -> Iterator[tuple[Row, Variant | None]]:
    """Each variant's row after a pass that compiles its kernels; with None in place of the variant if it failed. The
    stock model, which compiles nothing, warms up on a short latent."""
    velocities = {}
    for variant in [*TIMED, STOCK]:
        if variant.weights not in made.loaded:
            continue
        row = Row(made.case.name, variant.name, shape)
        began = time.monotonic()
        try:
            velocities[variant] = made.step(variant, SHORT if variant == STOCK else None).cpu()
            row.note = f"first pass {time.monotonic() - began:.1f} s"
            if variant != STOCK and made.case.checked:
                row.error, note = reference_error(made, variant)
                row.note += f"; {note}"
        except RuntimeError as error:
            yield _refused(row, error), None
            continue
        sage = variant._replace(mode="sagesla")
        if variant.mode == "sla" and sage in velocities:
            difference = relative_error(velocities[sage], velocities[variant])
            row.note += f"; 8-bit attention is {difference:.1e} from it"
        if not velocities[variant].isfinite().all():
            row.note += "; NOT FINITE"
        yield row, variant


def operators(made: Models, variant: Variant, step: Row) -> Iterator[Row]:
    """A row for each operator that takes LISTED of a step or more, and one for the others: the milliseconds of all its
    calls. The step's row is given the peak memory of this pass."""
    cuda = made.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    with OperatorTimes(made.device) as times:
        made.step(variant)
    found = times.read()
    if cuda:
        step.peak_gb = (torch.cuda.max_memory_allocated() - held) / 1e9
    total = sum(operator.ms for operator in found)
    rest = [operator for operator in found if operator.ms < LISTED * total]
    others = Operator("the others", sum(each.ms for each in rest), sum(each.calls for each in rest))
    for name, ms, calls in [*found[: len(found) - len(rest)], others]:
        note = f"{calls} calls, {ms / total:.1%} of the operators' {total:.1f} ms"
        yield Row(f"{made.case.name}: operators", f"{variant.name}: {name}", step.shape, single(ms), note=note)


def _dense(made: Models, clock: Clock, stock_ms: float, shape: str) -> Row:
    """Int8 weights with ComfyUI's dense attention, which says what int8 costs in accuracy: one pass."""
    row = Row(made.case.name, DENSE.name, shape)
    row.error = relative_error(made.step(DENSE, SHORT), made.step(STOCK, SHORT))
    row.timing = single(clock.once(lambda: made.step(DENSE)))
    row.note = f"one pass; error: {SHORT} latent frames, against stock bf16"
    row.ratios = {"stock": stock_ms / row.timing.ms}
    return row


def _refused(row: Row, error: RuntimeError) -> Row:
    torch.cuda.empty_cache()
    row.note = f"not here: {str(error).strip().splitlines()[0][:120]}"
    return row

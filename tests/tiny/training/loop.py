"""A training stage that can be stopped at any time and resumed."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

logger = logging.getLogger("tiny")
LOG_EVERY = 20


@dataclass(frozen=True)
class Stage:
    """name: of the checkpoint file; steps: in all; warm_up: steps to full rate; average: the decay of the averaged
    weights, which are the stage's result."""

    name: str
    steps: int
    warm_up: int = 50
    average: float = 0.995


def train(
    stage: Stage,
    folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
    loss: Callable[[int], torch.Tensor],
    save_every: float = 120.0,
) -> dict[str, torch.Tensor]:
    """Runs or resumes a stage and returns its averaged weights, float32.

    `loss(step)` must depend on the step and the weights alone, so that an interrupted run repeats the uninterrupted
    one. The rate of every optimizer follows a warm-up and half a cosine; a checkpoint is written every `save_every`
    seconds."""
    path = folder / f"{stage.name}.pt"
    averaged = {name: p.detach().clone() for name, p in parameters.items()}
    first = 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        first, averaged = saved["step"], saved["averaged"]
        for name, p in parameters.items():
            p.data.copy_(saved["weights"][name])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    if first:
        rates = saved["rates"]

    def save(step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: p.detach() for name, p in parameters.items()}
        state = {"step": step, "weights": weights, "averaged": averaged, "rates": rates}
        torch.save(state | {"optimizers": [o.state_dict() for o in optimizers]}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    recent, saved_at, started = 0.0, time.monotonic(), time.monotonic()
    for step in range(first, stage.steps):
        factor = min(1.0, (step + 1) / stage.warm_up) * (0.51 + 0.49 * math.cos(math.pi * step / stage.steps))
        for optimizer, group_rates in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, group_rates, strict=True):
                group["lr"] = rate * factor
            optimizer.zero_grad()
        value = loss(step)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(stage.average, (step + 1) / (step + 10))
        names = list(parameters)
        torch._foreach_lerp_([averaged[n] for n in names], [parameters[n].detach() for n in names], 1 - decay)
        recent = value.item() if step == first else 0.95 * recent + 0.05 * value.item()
        if step % LOG_EVERY == 0 or step + 1 == stage.steps:
            seconds = (time.monotonic() - started) / (step + 1 - first)
            logger.info("%s %d/%d loss %.4f (%.2f s a step)", stage.name, step, stage.steps, recent, seconds)
        if time.monotonic() - saved_at > save_every:
            save(step + 1)
            saved_at = time.monotonic()
    save(stage.steps)
    return averaged

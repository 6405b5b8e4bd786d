"""Run-time LoRAs beside a quantised linear, whose weight stays as it is."""

from collections.abc import Iterable

import comfy.model_management
import torch
import torch.nn.functional as F

from ..lora import LowRank


def add_branches(y: torch.Tensor, x: torch.Tensor, branches: Iterable[LowRank]) -> torch.Tensor:
    """y + the sum of scale * up (down x) over the branches; x [..., in], y [..., out]. The matrices move to x's device and type."""
    for branch in branches:
        down, up = (comfy.model_management.cast_to_device(m, x.device, x.dtype) for m in (branch.down, branch.up))
        y = torch.add(y, F.linear(F.linear(x, down), up), alpha=branch.scale)
    return y

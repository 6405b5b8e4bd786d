"""TurboDiffusion's int8 linear layer written out, with tiles of 128x128 in loops and sums in float64; and the same with
activations in groups of 1x128."""

from typing import NamedTuple

import torch


class Areas(NamedTuple):
    """What of an activation shares a scale: so many rows, and 128 channels; with codes up to so many levels."""

    rows: int
    levels: float


AREAS = {"upstream": Areas(128, 128.0), "fine": Areas(1, 127.0)}


def activation_codes(x: torch.Tensor, activations: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of x [M, K] and scales [M / rows, K / 128], with the multiplier levels/amax, as upstream's kernel computes
    it."""
    size, levels = AREAS[activations]
    codes, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(-(-len(x) // size), -(-x.shape[1] // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            area = slice(i * size, i * size + size), slice(j * 128, j * 128 + 128)
            amax = x[area].abs().max().clamp(min=1e-8)
            codes[area] = (x[area] * (torch.tensor(levels) / amax)).round().clamp(-levels, 127).to(torch.int8)
            scales[i, j] = amax / levels
    return codes, scales


def w8a8(
    x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor, activations: str
) -> torch.Tensor:
    """The layer written out: x [B, M, K] quantized item by item, exact integer products, float64 sums."""
    out = []
    for item in x:
        xq, xs = activation_codes(item, activations)
        total = torch.zeros(len(item), len(codes), dtype=torch.float64)
        for tile in range(scales.shape[1]):
            k = slice(tile * 128, tile * 128 + 128)
            product = (xq[:, k].long() @ codes[:, k].long().T).double()
            rows = xs[:, tile].double().repeat_interleave(AREAS[activations].rows)[: len(item)]
            columns = scales[:, tile].double().repeat_interleave(128)[: len(codes)]
            total += product * rows[:, None] * columns
        out.append(total + bias.double())
    return torch.stack(out)

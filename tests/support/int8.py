"""TurboDiffusion's int8 linear layer written out, with tiles of 128x128 in loops and sums in float64."""

import torch


def activation_codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of x [M, K] and scales by 128x128 tile, with upstream's multiplier 128/amax, as its kernel computes it."""
    codes, scales = torch.empty(x.shape, dtype=torch.int8), torch.empty(-(-len(x) // 128), -(-x.shape[1] // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            area = slice(i * 128, i * 128 + 128), slice(j * 128, j * 128 + 128)
            amax = x[area].abs().max().clamp(min=1e-8)
            codes[area] = (x[area] * (torch.tensor(128.0) / amax)).round().clamp(-128, 127).to(torch.int8)
            scales[i, j] = amax / 128
    return codes, scales


def w8a8(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The layer written out: x [B, M, K] quantized by 128x128 tile of each item, exact integer products, float64
    sums."""
    out = []
    for item in x:
        xq, xs = activation_codes(item)
        total = torch.zeros(len(item), len(codes), dtype=torch.float64)
        for tile in range(scales.shape[1]):
            k = slice(tile * 128, tile * 128 + 128)
            product = (xq[:, k].long() @ codes[:, k].long().T).double()
            rows, columns = (
                s[:, tile].double().repeat_interleave(128)[:n] for s, n in ((xs, len(item)), (scales, len(codes)))
            )
            total += product * rows[:, None] * columns
        out.append(total + bias.double())
    return torch.stack(out)

"""An int8 linear layer for devices where an int8 product would be slower: the weight is dequantized for each product,
and the activation is not quantized. The product costs far more than reading the weight twice, and the result is more
exact."""

import torch
import torch.nn.functional as F

from .reference import dequantize_block


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "block",
) -> torch.Tensor:
    """x [..., M, K] times weight int8 [N, K] with scales [ceil(N/128), ceil(K/128)] or [N], plus bias [N] -> [..., M,
    N] in x's dtype; `activation` has no effect."""
    if weight_scale.ndim == 1:
        weight = (weight * weight_scale[:, None]).to(x.dtype)
    else:
        weight = dequantize_block(weight, weight_scale, x.dtype)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

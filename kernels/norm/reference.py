"""The normalizations of a Wan block and of a Wan VAE with what follows them, in plain torch.

Those of a block run in float32 at least and on a bounded number of tokens at a time; inputs may be strided views.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..int8.reference import QUANTIZERS, quantize_row
from .format import PAST

_CHUNK_ELEMENTS = 1 << 26  # elements of a temporary: 256 MB in float32


def _chunks(x: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Batch item and tokens of each step through [B, L, width]."""
    tokens = max(1, _CHUNK_ELEMENTS // x.shape[2])
    for item in range(x.shape[0]):
        for start in range(0, x.shape[1], tokens):
            yield item, slice(start, start + tokens)


def rms_norm_rope(
    x: torch.Tensor, weight: torch.Tensor, freqs: torch.Tensor, *, heads: int, eps: float
) -> torch.Tensor:
    """Rotary embedding of x / rms(x) * weight, where rms spans all heads: [B, L, H * D] -> [B, L, H, D].

    `freqs` float32 [1, L, 1, D/2, 2, 2] holds a 2 x 2 matrix for each pair of neighboring channels, as ComfyUI's
    `rope_encode` makes it. The normalized values are rounded to x's dtype before they are rotated, as in the host."""
    compute = torch.promote_types(x.dtype, torch.float32)
    out = torch.empty((*x.shape[:2], heads, x.shape[2] // heads), dtype=x.dtype, device=x.device)
    for item, tokens in _chunks(x):
        normed = F.rms_norm(x[item, tokens].to(compute), weight.shape, weight.to(compute), eps).to(x.dtype)
        even, odd = normed.to(compute).unflatten(1, (heads, -1, 2)).unbind(-1)
        matrix = freqs[0, tokens]
        rotated = (matrix[..., row, 0] * even + matrix[..., row, 1] * odd for row in range(2))
        out[item, tokens] = torch.stack(tuple(rotated), -1).flatten(-2)
    return out


def _modulated(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float
) -> Iterator[tuple[int, slice, torch.Tensor]]:
    compute = torch.promote_types(x.dtype, torch.float32)
    tokens_per_frame = -(-x.shape[1] // shift.shape[1])
    for item, tokens in _chunks(x):
        frame = torch.arange(x.shape[1], device=x.device)[tokens] // tokens_per_frame
        normed = F.layer_norm(x[item, tokens].to(compute), x.shape[2:], eps=eps)
        yield item, tokens, normed * (1 + scale[item, frame].to(compute)) + shift[item, frame].to(compute)


def layer_norm_modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift, rounded once: [B, L, width].

    `shift` and `scale` are [B, frames, width]; each holds for ceil(L / frames) consecutive tokens."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for item, tokens, value in _modulated(x, shift, scale, eps):
        out[item, tokens] = value
    return out


def layer_norm_modulate_quantize(
    x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float, by: str = "row"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`layer_norm_modulate` as int8 codes [B, L, width] and float32 scales.

    By "block" and "group" of its rounded values, by "row" of its values in float32."""
    if by != "row":
        return QUANTIZERS[by](layer_norm_modulate(x, shift, scale, eps=eps))
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    row_scales = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    for item, tokens, value in _modulated(x, shift, scale, eps):
        codes[item, tokens], row_scales[item, tokens] = quantize_row(value)
    return codes, row_scales


def rms_norm_silu_pad(x: torch.Tensor, weight: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
    """SiLU(x / rms(x) * weight) behind the two frames before it, which `past` is changed to the last two of; see
    `custom_ops`.

    In x's dtype, rounded after each operation: the bits of ComfyUI's RMS_norm, SiLU and CausalConv3d."""
    y = F.normalize(x, dim=1)
    y *= x.shape[1] ** 0.5
    y *= weight.to(y).view(-1, 1, 1, 1)
    y = F.silu(y, inplace=True)
    if past is None:
        return y
    y = torch.cat((past, y), 2)
    past.copy_(y[:, :, -PAST:])
    return y

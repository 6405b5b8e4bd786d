"""Int8 linear layers in plain torch: TurboDiffusion's quantizer and block-scaled product, and the epilogues around
them.

    y[m, n] = sum over tiles t of 128 along K of  float(sum_{k in t} codes[m, k] weight[n, k]) * (scales[m/128, t] *
    weight_scale[n/128, t])

The tiles and their scales are described in `format`. Activations may instead have one scale per row, which outlier
tokens harm less. Every temporary is bounded by `_CHUNK_ELEMENTS`.
"""

import math

import torch
import torch.nn.functional as F

from .format import MIN_AMAX, TILE, tile_count

_CHUNK_ELEMENTS = 1 << 26  # elements of a temporary: 256 MB in float32


def _items(x: torch.Tensor, dims: int) -> torch.Tensor:
    """x with its leading dims as one, before the last `dims`; a view where x allows one."""
    return x.reshape(math.prod(x.shape[:-dims]), *x.shape[-dims:])


def _chunks(rows: int, width: int) -> list[slice]:
    """Slices of whole tiles of rows, each of at most `_CHUNK_ELEMENTS` elements or one tile."""
    step = max(1, _CHUNK_ELEMENTS // (width * TILE)) * TILE
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _spread(scales: torch.Tensor, rows: int) -> torch.Tensor:
    """A row of scales for each row of elements: [tiles, ...] -> [rows, ...]."""
    return scales.repeat_interleave(TILE, 0)[:rows]


def _encode(x: torch.Tensor, amax: torch.Tensor, levels: int) -> torch.Tensor:
    """Codes -levels..127 of x, half to even; NaN becomes 0."""
    multiplier = torch.full_like(amax, levels) / amax  # a number / tensor would be a product with the reciprocal
    return (x * multiplier).round_().clamp_(-levels, 127).nan_to_num_(0).to(torch.int8)


def quantize_block(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of x [..., M, K] and the float32 scale amax/128 of each tile [..., ceil(M/128), ceil(K/128)].

    The codes reach -128 but only 127. A tile that holds NaN or Inf has that as its scale and its finite elements have
    code 0, so that its products are NaN; the reference drops some NaNs, depending on their order."""
    *batch, m, k = x.shape
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty((*batch, tile_count(m), tile_count(k)), dtype=torch.float32, device=x.device)
    for item, item_codes, item_scales in zip(_items(x, 2), _items(codes, 2), _items(scales, 2), strict=True):
        for rows in _chunks(m, k):
            chunk = item[rows].float()
            padded = F.pad(chunk, (0, -k % TILE, 0, -len(chunk) % TILE))
            tiles = padded.view(padded.shape[0] // TILE, TILE, -1, TILE)
            amax = tiles.abs().amax((1, 3)).clamp_(min=MIN_AMAX)
            encoded = _encode(tiles, amax[:, None, :, None], 128)
            item_codes[rows] = encoded.view(padded.shape)[: len(chunk), :k]
            item_scales[rows.start // TILE : tile_count(rows.stop)] = amax / 128
    return codes, scales


def quantize_row(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes -127..127 of x [..., M, K] and the float32 scale amax/127 of each row [..., M]; NaN and Inf as in
    `quantize_block`."""
    m, k = x.shape[-2:]
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    for item, item_codes, item_scales in zip(_items(x, 2), _items(codes, 2), _items(scales, 1), strict=True):
        for rows in _chunks(m, k):
            chunk = item[rows].float()
            amax = chunk.abs().amax(-1, keepdim=True).clamp_(min=MIN_AMAX)
            item_codes[rows] = _encode(chunk, amax, 127)
            item_scales[rows] = (amax / 127).squeeze(-1)
    return codes, scales


def dequantize_block(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor that `quantize_block` encoded, up to half a scale per element."""
    m, k = codes.shape[-2:]
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for item, item_codes, item_scales in zip(_items(out, 2), _items(codes, 2), _items(scales, 2), strict=True):
        for rows in _chunks(m, k):
            tiles = _spread(item_scales[rows.start // TILE : tile_count(rows.stop)].T, k).T
            item[rows] = item_codes[rows] * _spread(tiles, rows.stop - rows.start)
    return out


def int8_matmul(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """The product of quantized activations [..., M, K] and weight [N, K], as `out_dtype` [..., M, N].

    `scales` are those of `quantize_block`, or [..., M] of `quantize_row`: these multiply the whole sum. The bias [N] is
    added to the rounded product, a second rounding, as in the reference."""
    m, k = codes.shape[-2:]
    n = weight.shape[0]
    by_block = scales.ndim == codes.ndim
    out = torch.empty((*codes.shape[:-1], n), dtype=out_dtype, device=codes.device)
    column_scales = _spread(weight_scale, n)
    item_dims = 2 if by_block else 1
    for item, item_codes, item_scales in zip(_items(out, 2), _items(codes, 2), _items(scales, item_dims), strict=True):
        for rows in _chunks(m, n):
            count = rows.stop - rows.start
            total = torch.zeros((count, n), dtype=torch.float32, device=codes.device)
            if by_block:
                row_scales = _spread(item_scales[rows.start // TILE : tile_count(rows.stop)], count)
            for tile in range(tile_count(k)):
                columns = slice(tile * TILE, (tile + 1) * TILE)
                # exact in float32: the sum stays below 2^22 (see `format`)
                product = item_codes[rows, columns].float() @ weight[:, columns].float().T
                scale = column_scales[:, tile]
                total += product.mul_(row_scales[:, tile, None] * scale if by_block else scale)
            if not by_block:
                total *= item_scales[rows, None]
            item[rows] = total
            if bias is not None:
                item[rows] += bias.to(out_dtype)
    return out


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "block",
) -> torch.Tensor:
    """x [..., M, K] times weight int8 [N, K] with scales [ceil(N/128), ceil(K/128)], x quantized by "block" or
    "row"."""
    quantize = {"block": quantize_block, "row": quantize_row}[activation]
    codes, scales = quantize(x)
    return int8_matmul(codes, scales, weight, weight_scale, bias, out_dtype=x.dtype)


def int8_matmul_gelu_quantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_block` of the tanh GELU of `int8_matmul`; both round to `out_dtype` on the way."""
    y = int8_matmul(codes, scales, weight, weight_scale, bias, out_dtype=out_dtype)
    return quantize_block(F.gelu(y, approximate="tanh"))


def int8_matmul_gate_residual(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor,
    gate: torch.Tensor,
) -> torch.Tensor:
    """residual + gate * y, rounded once, with y the `int8_matmul` of codes [B, M, K] in the residual's dtype; residual
    [B, M, N], gate [B, N] or [B, 1, N]."""
    y = int8_matmul(codes, scales, weight, weight_scale, bias, out_dtype=residual.dtype)
    return torch.addcmul(residual, gate.view(-1, 1, gate.shape[-1]).to(residual.dtype), y)

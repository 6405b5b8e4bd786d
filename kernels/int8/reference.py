"""Int8 linear layers in plain torch: TurboDiffusion's quantizer and block-scaled product, and the epilogues around
them.

    y[m, n] = sum over tiles t of 128 along K of
        float(sum_{k in t} codes[m, k] weight[n, k]) * (scales[m/128, t] * weight_scale[n/128, t])

The tiles and their scales are described in `format`. Activations may instead have one scale for each row, or for each
row of a tile, so that an outlier token does not coarsen the codes of others. A weight may have one scale for each
output channel, and an activation then one for each row: the sum of integers is over all of K. Temporaries have at most
`_CHUNK_ELEMENTS` elements.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from .format import EXACT_K, GROUP_LEVELS, MIN_AMAX, TILE, empty_codes, scale_kind, tile_count

_CHUNK_ELEMENTS = 1 << 26  # elements of a temporary: 256 MB in float32


def _items(x: torch.Tensor, dims: int) -> torch.Tensor:
    """x with the dimensions before the last `dims` flattened to one; a view where x allows one."""
    return x.reshape(math.prod(x.shape[:-dims]), *x.shape[-dims:])


def _chunks(rows: int, width: int) -> list[slice]:
    """Slices of whole tiles of rows, each of at most `_CHUNK_ELEMENTS` elements or one tile."""
    step = max(1, _CHUNK_ELEMENTS // (width * TILE)) * TILE
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _spread(scales: torch.Tensor, rows: int) -> torch.Tensor:
    """A row of scales for each row of elements: [tiles, ...] -> [rows, ...]."""
    return scales.repeat_interleave(TILE, 0)[:rows]


def _encode(x: torch.Tensor, amax: torch.Tensor, levels: int) -> torch.Tensor:
    """Codes -levels..127 of x, rounded half to even; NaN becomes 0."""
    multiplier = torch.full_like(amax, levels) / amax  # torch computes number / tensor as number * reciprocal
    return (x * multiplier).round_().clamp_(-levels, 127).nan_to_num_(0).to(torch.int8)


def quantize_block(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes of x [..., M, K] and the float32 scale amax/128 of each tile [..., ceil(M/128), ceil(K/128)].

    The codes are -128..127. A tile that holds NaN or Inf has that as its scale and its finite elements have code 0, so
    that its products are NaN; upstream drops some NaNs, depending on their order."""
    *batch, m, k = x.shape
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scales = torch.empty((*batch, tile_count(m), tile_count(k)), dtype=torch.float32, device=x.device)
    for item, item_codes, item_scales in zip(_items(x, 2), _items(codes, 2), _items(scales, 2), strict=True):
        for rows in _chunks(m, k):
            chunk = item[rows].float()
            padded = F.pad(chunk, (0, -k % TILE, 0, -len(chunk) % TILE))
            tiles = rearrange(padded, "(m i) (k j) -> m k i j", i=TILE, j=TILE)
            amax = tiles.abs().amax((2, 3), keepdim=True).clamp_(min=MIN_AMAX)
            encoded = rearrange(_encode(tiles, amax, 128), "m k i j -> (m i) (k j)")
            item_codes[rows] = encoded[: len(chunk), :k]
            item_scales[rows.start // TILE : tile_count(rows.stop)] = rearrange(amax, "m k 1 1 -> m k") / 128
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


def quantize_group(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 codes -127..127 of x [..., M, K] and the float32 scale amax/127 of each 128 channels of a row
    [..., ceil(K/128), M]. A group that holds NaN or Inf has that as its scale; its codes then do not matter."""
    m, k = x.shape[-2:]
    codes, scales = empty_codes(x.shape, "group", x.device)
    for item, item_codes, item_scales in zip(_items(x, 2), _items(codes, 2), _items(scales, 2), strict=True):
        for rows in _chunks(m, k):
            groups = rearrange(F.pad(item[rows].float(), (0, -k % TILE)), "m (k j) -> m k j", j=TILE)
            amax = groups.abs().amax(-1, keepdim=True).clamp_(min=MIN_AMAX)
            item_codes[rows] = rearrange(_encode(groups, amax, GROUP_LEVELS), "m k j -> m (k j)")[:, :k]
            item_scales[:, rows] = rearrange(amax * (1 / GROUP_LEVELS), "m k 1 -> k m")
    return codes, scales


QUANTIZERS = {"block": quantize_block, "group": quantize_group, "row": quantize_row}


def dequantize_group(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor [..., M, K] that `quantize_group` encoded, up to half a scale per element."""
    spread = repeat(scales, "... k m -> ... m (k j)", j=TILE)[..., : codes.shape[-1]]
    return (codes * spread).to(dtype)


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

    `scales` are those of a quantizer above; by row they multiply the whole sum. The bias [N] is added to the rounded
    product and the sum is rounded again, as upstream does."""
    m, k = codes.shape[-2:]
    n = weight.shape[0]
    by = scale_kind(codes, scales)
    by_channel = weight_scale.ndim == 1
    out = torch.empty((*codes.shape[:-1], n), dtype=out_dtype, device=codes.device)
    column_scales = weight_scale if by_channel else _spread(weight_scale, n)
    item_dims = 1 if by == "row" else 2
    for item, item_codes, item_scales in zip(_items(out, 2), _items(codes, 2), _items(scales, item_dims), strict=True):
        for rows in _chunks(m, n):
            count = rows.stop - rows.start
            if by_channel:
                total = _integer_product(item_codes[rows], weight) * (item_scales[rows, None] * column_scales)
                item[rows] = total if bias is None else total.to(out_dtype) + bias.to(out_dtype)
                continue
            total = torch.zeros((count, n), dtype=torch.float32, device=codes.device)
            if by == "block":
                row_scales = _spread(item_scales[rows.start // TILE : tile_count(rows.stop)], count)
            elif by == "group":
                row_scales = item_scales[:, rows].T
            for tile in range(tile_count(k)):
                columns = slice(tile * TILE, (tile + 1) * TILE)
                # exact in float32: the sum stays below 2^22 (see `format`)
                product = item_codes[rows, columns].float() @ weight[:, columns].float().T
                scale = column_scales[:, tile]
                total += product.mul_(scale if by == "row" else row_scales[:, tile, None] * scale)
            if by == "row":
                total *= item_scales[rows, None]
            item[rows] = total
            if bias is not None:
                item[rows] += bias.to(out_dtype)
    return out


def _integer_product(codes: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """codes [M, K] times weight [N, K], summed in int32 and rounded once to float32 [M, N]."""
    total = torch.zeros((len(codes), len(weight)), dtype=torch.int32, device=codes.device)
    for start in range(0, codes.shape[1], EXACT_K):
        columns = slice(start, start + EXACT_K)
        total += (codes[:, columns].float() @ weight[:, columns].float().T).to(torch.int32)
    return total.float()


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    activation: str = "block",
) -> torch.Tensor:
    """x [..., M, K] times weight int8 [N, K] with scales [ceil(N/128), ceil(K/128)] or [N], x quantized by "block",
    "group" or "row"."""
    codes, scales = QUANTIZERS[activation](x)
    return int8_matmul(codes, scales, weight, weight_scale, bias, out_dtype=x.dtype)


def int8_matmul_gelu_quantize(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    out_dtype: torch.dtype,
    by: str = "block",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tanh GELU of `int8_matmul`, quantized by "block", "group" or "row"; product and GELU are rounded to
    `out_dtype` before."""
    y = int8_matmul(codes, scales, weight, weight_scale, bias, out_dtype=out_dtype)
    return QUANTIZERS[by](F.gelu(y, approximate="tanh"))


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

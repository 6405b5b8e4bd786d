"""Dequantizing bitsandbytes' 4-bit weights, in plain torch.

    a[b] = nested_quant_map[absmax[b]] * nested_absmax[b // nested_blocksize] + nested_offset    (double quantization)
    a[b] = absmax[b]    (otherwise)
    w[i] = quant_map[code[i]] * a[i // blocksize]

in float32, with the weight flattened row by row and two codes a byte, the first in the high half. The order of
operations is that of bitsandbytes (`functional.dequantize_4bit`), so the results are bit-equal."""

import torch
import torch.nn.functional as F

CHUNK = 1 << 20  # elements dequantized at a time: their float32 values take 4 MB


def nf4_dequantize(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    quant_map: torch.Tensor,
    nested_absmax: torch.Tensor | None,
    nested_quant_map: torch.Tensor | None,
    nested_offset: float,
    blocksize: int,
    nested_blocksize: int,
    rows: int,
    columns: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """codes uint8 [ceil(N/2)], absmax [ceil(N/blocksize)] uint8 (float32 without nested_*) -> [rows, columns] in
    `dtype`, N = rows * columns."""
    out = torch.empty(rows * columns, dtype=dtype, device=codes.device)
    byte = torch.arange(256, device=codes.device)
    pairs = torch.stack([quant_map[byte >> 4], quant_map[byte & 15]], dim=1)  # the values of the two codes of each byte
    for start in range(0, len(out), CHUNK):  # a multiple of every block size of bitsandbytes
        stop = min(start + CHUNK, len(out))
        blocks = torch.arange(start // blocksize, -(-stop // blocksize), device=codes.device)
        scales = absmax[blocks]
        if nested_absmax is not None and nested_quant_map is not None:
            scales = nested_quant_map[scales.int()] * nested_absmax[blocks // nested_blocksize] + nested_offset
        values = F.embedding(codes[start // 2 : (stop + 1) // 2].int(), pairs).flatten()
        values = F.pad(values, (0, len(blocks) * blocksize - len(values))).view(-1, blocksize)
        out[start:stop] = values.mul_(scales[:, None]).flatten()[: stop - start]
    return out.view(rows, columns)

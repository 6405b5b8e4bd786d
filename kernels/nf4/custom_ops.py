"""The entry of dequantizing 4-bit weights (NF4) of bitsandbytes."""

import math

import torch

from ..call_counter import count
from ..dispatch import Operator

NF4 = Operator("nf4_dequantize", "nf4", "NF4 weights")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _unsupported(codes: torch.Tensor, dtype: torch.dtype) -> dict[str, str]:
    """By backend, the reason why it cannot take these codes or give this dtype."""
    if dtype not in _DTYPES:
        return {"triton": f"its kernel makes float32, float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"}
    if not codes.is_contiguous():
        return {"triton": "its kernel needs contiguous codes"}
    return {}


@torch.library.custom_op("turbodiffusion::nf4_dequantize", mutates_args=())
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
    """A weight [rows, columns] in `dtype` from its 4-bit codes, uint8 [ceil(N / 2)] with N = rows * columns: each
    stands for a value of `quant_map` float32 [16], scaled by block. The scales `absmax` [B], B = ceil(N / blocksize),
    are float32, or uint8 with `nested_absmax` float32 [ceil(B / nested_blocksize)], `nested_quant_map` float32 [256]
    and `nested_offset`. `blocksize` is a power of two, at least 32.

    Bit-equal to bitsandbytes' dequantization. Raises ValueError for shapes or types that do not fit together."""
    elements = rows * columns
    blocks = math.ceil(elements / blocksize) if blocksize > 0 else -1
    dtype_of_scales = torch.float32
    nested_fit = True
    if nested_absmax is not None and nested_quant_map is not None:
        dtype_of_scales = torch.uint8
        nested_blocks = math.ceil(blocks / max(nested_blocksize, 1))
        nested_fit = nested_absmax.shape == (nested_blocks,) and nested_quant_map.shape == (256,)
    fits = (
        nested_fit
        and min(rows, columns) > 0
        and blocksize >= 32
        and blocksize & (blocksize - 1) == 0
        and codes.dtype == torch.uint8
        and codes.shape == (math.ceil(elements / 2),)
        and absmax.shape == (blocks,)
        and absmax.dtype == dtype_of_scales
        and quant_map.shape == (16,)
    )
    if not fits:
        sizes = [list(x.shape) for x in (codes, absmax, quant_map, nested_absmax, nested_quant_map) if x is not None]
        raise ValueError(
            f"A weight [{rows}, {columns}] in blocks of {blocksize} needs codes [N/2], scales [N/{blocksize}], a "
            "table [16] and, "
            f"for scales in uint8, scales of them and a table [256]: {sizes}, {absmax.dtype}."
        )
    count("nf4 dequantize")
    return NF4.find(codes.device, _unsupported(codes, dtype))(
        codes,
        absmax,
        quant_map,
        nested_absmax,
        nested_quant_map,
        nested_offset,
        blocksize,
        nested_blocksize,
        rows,
        columns,
        dtype,
    )


@nf4_dequantize.register_fake
def _(
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
    return codes.new_empty((rows, columns), dtype=dtype)

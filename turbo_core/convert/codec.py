"""How a weight is stored: its tensors in a file, from and to float32, some rows at a time.

A format is a torch float dtype, for a plain tensor, or the name of a quantized one:

    int8_block     codes int8 [N, K], `weight_scale` float32 [ceil(N/128), ceil(K/128)]: TurboDiffusion's, for this pack
    fp8_e4m3fn     codes float8 [N, K], `weight_scale` float32 []: ComfyUI's scaled fp8
    int8_rowwise   codes int8 [N, K], `weight_scale` float32 [N, 1]: ComfyUI's int8, one scale a row

The last two have a `comfy_quant` tensor beside the weight, by which ComfyUI knows them."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping

import torch

from ...kernels import TILE, dequantize_block, quantize_block, quantize_row, tile_count
from ..checkpoint.comfy_quant import read_format
from ..checkpoint.layout import tile_shape
from ..errors import CheckpointError

Format = torch.dtype | str
WEIGHTS = ("keep", "int8_block", "bf16", "fp8_e4m3fn", "int8_rowwise")
_COMFY_NAMES = {"fp8_e4m3fn": "float8_e4m3fn", "int8_rowwise": "int8_tensorwise"}
_CODES = {"int8_block": torch.int8, "int8_rowwise": torch.int8, "fp8_e4m3fn": torch.float8_e4m3fn}
_FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
_CONFIG_SIZE = 32
SLAB_ELEMENTS = 1 << 19  # of a weight in memory at a time: 2 MB in float32, and a few temporaries of that size

Rows = Callable[[slice], torch.Tensor]  # rows of a weight as float32 [rows, width]
Read = Callable[[str, slice], torch.Tensor]  # rows of a tensor by name, as they are stored


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def as_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """A view with the first dimension as rows and the others as columns."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim else 1, math.prod(tensor.shape[1:]))


def slabs(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a tensor in whole tiles, at most SLAB_ELEMENTS or one tile at a time."""
    rows = shape[0] if shape else 1
    width = math.prod(shape[1:])
    step = max(1, SLAB_ELEMENTS // (max(width, 1) * TILE)) * TILE
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def format_of(tensors: Mapping[str, torch.Tensor], name: str) -> Format:
    """The format of a tensor in ComfyUI's names. A format of ComfyUI's that this module does not know keeps ComfyUI's
    name."""
    layer = name.removesuffix(".weight")
    config = tensors.get(f"{layer}.comfy_quant") if name.endswith(".weight") else None
    if config is None:
        dtype = tensors[name].dtype
        return "int8_block" if dtype == torch.int8 else dtype
    kind, rotated = read_format(config)
    ours = {comfy: name for name, comfy in _COMFY_NAMES.items()}
    return kind if rotated else ours.get(kind, kind)


def is_open(stored: Format) -> bool:
    """Whether a format is one that `decode` and `encode` know."""
    return isinstance(stored, torch.dtype) or stored in _CODES


def decode(tensors: Mapping[str, torch.Tensor], read: Read, name: str, rows: slice) -> torch.Tensor:
    """Rows (whole tiles) of a tensor as float32 [rows, width], a copy; `read` gives rows of a tensor's matrix as they
    are stored. Raises CheckpointError for a format without decoder, a missing scale, and values that are NaN or
    infinite."""
    weight = read(name, rows)
    stored = format_of(tensors, name)
    if isinstance(stored, torch.dtype):
        values = weight.to(torch.float32, copy=True)
    else:
        layer = name.removesuffix(".weight")
        scale = tensors.get(f"{layer}.weight_scale")
        if not is_open(stored) or scale is None:
            raise CheckpointError(
                f"{layer} is stored as {stored}{' without its scale' if scale is None else ''}, which cannot be "
                "converted; "
                "use the bf16 file."
            )
        if stored == "int8_block":
            tiles = slice(rows.start // TILE, tile_count(rows.stop))
            values = dequantize_block(weight, read(f"{layer}.weight_scale", tiles), torch.float32)
        elif scale.numel() not in (1, tensors[name].shape[0]):
            raise CheckpointError(
                f"{layer}.weight_scale has {scale.numel()} scales for {tensors[name].shape[0]} rows; download the "
                "file again."
            )
        else:
            part = read(f"{layer}.weight_scale", slice(0, 1) if scale.numel() == 1 else rows)
            values = weight.float() * part.float().reshape(-1, 1)
    return finite(name, values)


def finite(name: str, values: torch.Tensor) -> torch.Tensor:
    """The values, if they are finite; else CheckpointError naming the tensor."""
    if not values.isfinite().all():
        raise CheckpointError(f"{name} holds values that are NaN or infinite; download the file again.")
    return values


def stored_tensors(stored: Format, name: str, shape: tuple[int, ...]) -> list[TensorInfo]:
    """The tensors of a weight in a format, in the order in which `encode` completes them."""
    if isinstance(stored, torch.dtype):
        return [TensorInfo(name, stored, shape)]
    layer = name.removesuffix(".weight")
    scale = {"int8_block": tile_shape(shape), "int8_rowwise": (shape[0], 1), "fp8_e4m3fn": ()}[stored]
    infos = [TensorInfo(name, _CODES[stored], shape), TensorInfo(f"{layer}.weight_scale", torch.float32, scale)]
    if stored in _COMFY_NAMES:
        infos.append(TensorInfo(f"{layer}.comfy_quant", torch.uint8, (_CONFIG_SIZE,)))
    return infos


def encode(stored: Format, name: str, shape: tuple[int, ...], rows: Rows) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of `stored_tensors` from the weight's rows, in parts: (name, the next rows of that tensor)."""
    if isinstance(stored, torch.dtype):
        for slab in slabs(shape):
            yield name, rows(slab).to(stored)
        return
    layer = name.removesuffix(".weight")
    scales = []
    if stored == "fp8_e4m3fn":
        # One scale for the tensor, so it is read twice.
        amax = torch.stack([rows(slab).abs().max() for slab in slabs(shape)]).max()
        scales.append(amax / _FP8_MAX if amax > 0 else torch.ones_like(amax))
    for slab in slabs(shape):
        values = rows(slab)
        if stored == "int8_block":
            codes, scale = quantize_block(values)
            scales.append(scale)
        elif stored == "int8_rowwise":
            codes, scale = quantize_row(values)
            scales.append(scale[:, None])
        else:
            codes = (values / scales[0]).clamp_(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)
        yield name, codes
    for scale in scales:
        yield f"{layer}.weight_scale", scale
    if stored in _COMFY_NAMES:
        # JSON allows trailing spaces.
        config = json.dumps({"format": _COMFY_NAMES[stored]}).encode().ljust(_CONFIG_SIZE)
        yield f"{layer}.comfy_quant", torch.tensor(list(config), dtype=torch.uint8)

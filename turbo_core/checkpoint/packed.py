"""bitsandbytes' 4-bit weights in a checkpoint: what a linear's `weight` stands for, read from the tensors beside it.

A linear [O, I] is stored as (bitsandbytes' own names, N = O * I):

    weight                              uint8 [ceil(N / 2), 1]: two codes a byte, the first in the high half
    weight.absmax                       uint8 [B], or float32 [B] without double quantization; B = ceil(N / blocksize)
    weight.quant_map                    float32 [16]: what each code stands for, before its block's scale
    weight.nested_absmax                float32 [ceil(B / nested blocksize)], double quantization only
    weight.nested_quant_map             float32 [256], double quantization only
    weight.quant_state.bitsandbytes__*  uint8: JSON with the shape, the block sizes and the offset of the scales; * is
    nf4 or fp4

Source: the state dicts that bitsandbytes 0.50 writes."""

import dataclasses
import json
import math
from collections.abc import Mapping

import torch

from ..errors import CheckpointError

STATE = ".quant_state.bitsandbytes__"
KINDS = ("nf4", "fp4")
_STATE_LIMIT = 1 << 16  # bytes; a real one has 170
_LONGEST = 1 << 24  # rows or columns; far beyond any layer, and their product fits in 64 bits
_BLOCKS = tuple(1 << power for power in range(5, 13))  # 32 to 4096, what bitsandbytes makes


@dataclasses.dataclass(frozen=True)
class Packed:
    """A 4-bit weight: its float shape and how its scales are stored. `nested_blocksize` 0: float32 scales, not
    quantized again."""

    kind: str
    shape: tuple[int, int]
    blocksize: int
    nested_blocksize: int
    nested_offset: float

    def sides(self, weight: str) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """The tensors beside `weight` but for the JSON, with their shapes and types."""
        blocks = math.ceil(math.prod(self.shape) / self.blocksize)
        sides: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            f"{weight}.absmax": ((blocks,), torch.uint8 if self.nested_blocksize else torch.float32),
            f"{weight}.quant_map": ((16,), torch.float32),
        }
        if self.nested_blocksize:
            sides[f"{weight}.nested_absmax"] = ((math.ceil(blocks / self.nested_blocksize),), torch.float32)
            sides[f"{weight}.nested_quant_map"] = ((256,), torch.float32)
        return sides

    @property
    def size(self) -> int:
        """Bytes of the codes."""
        return math.ceil(math.prod(self.shape) / 2)


def packed_weights(name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Packed]:
    """The 4-bit weights of a state dict, by tensor name. Raises CheckpointError, naming the file `name`, for a
    description that is missing, unreadable or impossible."""
    found = {key.partition(STATE)[0]: read_state(name, key, tensors[key]) for key in tensors if STATE in key}
    for key in tensors:
        weight = key.removesuffix(".absmax")
        if weight != key and weight not in found:
            raise CheckpointError(
                f"{name} holds a 4-bit weight without its description: {weight}{STATE}nf4 is missing; download it "
                "again."
            )
    return found


def read_state(name: str, key: str, tensor: torch.Tensor) -> Packed:
    """What the JSON tensor `key` says. Raises CheckpointError naming the file `name`."""
    try:
        if tensor.dtype != torch.uint8 or tensor.numel() > _STATE_LIMIT:
            raise ValueError
        state = json.loads(bytes(tensor.flatten().tolist()))
        rows, columns = state["shape"]
        nested = "nested_blocksize" in state
        packed = Packed(
            kind=state["quant_type"],
            shape=(rows, columns),
            blocksize=state["blocksize"],
            nested_blocksize=state["nested_blocksize"] if nested else 0,
            nested_offset=float(state["nested_offset"]) if nested else 0.0,
        )
        sizes = (rows, columns, packed.blocksize, packed.nested_blocksize)
        if (
            packed.kind not in KINDS
            or not key.endswith(STATE + packed.kind)
            or not all(type(size) is int for size in sizes)
            or not 1 <= min(rows, columns) <= max(rows, columns) <= _LONGEST
            or packed.blocksize not in _BLOCKS
            or (nested and packed.nested_blocksize not in _BLOCKS)
            or not math.isfinite(packed.nested_offset)
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise CheckpointError(
            f"{name}: {key} does not describe a 4-bit weight of bitsandbytes; download the file again."
        ) from None
    return packed


def write_state(state: Packed) -> torch.Tensor:
    """The JSON tensor that `read_state` reads."""
    content = {"quant_type": state.kind, "blocksize": state.blocksize, "dtype": "bfloat16", "shape": list(state.shape)}
    if state.nested_blocksize:
        content |= {"nested_blocksize": state.nested_blocksize, "nested_dtype": "float32"}
        content |= {"nested_offset": state.nested_offset}
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def flat_codes(tensors: dict[str, torch.Tensor], packed: Mapping[str, Packed]) -> dict[str, torch.Tensor]:
    """The same tensors with the codes of each 4-bit weight as flat bytes, on their own storage; older files hold them
    as another type of the same bytes."""
    flat = dict(tensors)
    for weight in packed:
        if weight in flat and flat[weight].is_contiguous():
            flat[weight] = flat[weight].reshape(-1).view(torch.uint8)
    return flat


def as_unpacked(tensors: Mapping[str, torch.Tensor], packed: Mapping[str, Packed]) -> dict[str, torch.Tensor]:
    """The state dict as it would be unquantized: 4-bit weights are tensors without memory, and what belongs to them is
    left out."""
    sides = {f"{weight}{STATE}{state.kind}" for weight, state in packed.items()}
    sides.update(side for weight, state in packed.items() for side in state.sides(weight))
    return {
        key: torch.empty(packed[key].shape, dtype=torch.bfloat16, device="meta") if key in packed else tensor
        for key, tensor in tensors.items()
        if key not in sides
    }


def packed_problems(tensors: Mapping[str, torch.Tensor], packed: Mapping[str, Packed]) -> dict[str, list[str]]:
    """What of the 4-bit weights is missing, wrongly shaped, of a wrong type or not finite, by kind as in
    `check_complete`."""
    problems: dict[str, list[str]] = {"missing": [], "wrongly shaped": [], "of a wrong type": [], "not finite": []}
    for weight, state in packed.items():
        for key, (shape, dtype) in {weight: ((state.size,), torch.uint8), **state.sides(weight)}.items():
            tensor = tensors.get(key)
            if tensor is None:
                problems["missing"].append(key)
            elif tensor.dtype != dtype:
                problems["of a wrong type"].append(f"{key} {str(tensor.dtype).removeprefix('torch.')}")
            elif tuple(tensor.shape) != shape:
                problems["wrongly shaped"].append(f"{key} {list(tensor.shape)} instead of {list(shape)}")
            elif dtype == torch.float32 and not tensor.is_meta and not tensor.isfinite().all():
                problems["not finite"].append(key)
    return problems

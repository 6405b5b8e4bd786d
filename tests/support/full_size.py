"""Full-size random int8 checkpoints in upstream's layout, written without ever being in memory."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import torch

from . import checkpoints

_BUFFER = 1 << 24
_NAMES = {torch.int8: "I8", torch.float32: "F32", torch.bfloat16: "BF16"}


def write_expert(path: Path, seed: int, sparse: bool = False, **size) -> Path:
    """A `.safetensors` file with every tensor of an int8 model of that size; the values repeat a random buffer, or are all 0 in a
    `sparse` file, which takes no disk."""
    entries = {}
    for key, shape in checkpoints.shapes(sla=True, **size).items():
        quantised = key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2 and "proj_l" not in key
        if quantised:
            layer = key.removesuffix(".weight")
            entries[f"{layer}.int8_weight"] = (torch.int8, shape)
            entries[f"{layer}.scale"] = (torch.float32, tuple(-(-n // checkpoints.TILE) for n in shape))
        else:
            entries[key] = (torch.float32 if "norm" in key else torch.bfloat16, shape)
    header, offset = {}, 0
    for key, (dtype, shape) in entries.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    random = np.random.RandomState(seed)
    codes = random.randint(-128, 128, _BUFFER, dtype=np.int8).tobytes()
    floats = (
        torch.from_numpy(random.standard_normal(_BUFFER // 2).astype(np.float32) * 0.02)
        .bfloat16()
        .view(torch.int16)
        .numpy()
    )
    sources = {
        torch.int8: codes,
        torch.bfloat16: floats.tobytes(),
        torch.float32: np.full(_BUFFER // 4, 1e-3, np.float32).tobytes(),
    }
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        if sparse:
            file.truncate(file.tell() + offset)
            return path
        for dtype, shape in entries.values():
            remaining = math.prod(shape) * dtype.itemsize
            while remaining > 0:
                remaining -= file.write(sources[dtype][:remaining])
    return path


def write_pth_copy(source: Path, path: Path) -> Path:
    """The same tensors as a `.pth` file, streamed from the mapped source."""
    from safetensors.torch import load_file

    torch.save(load_file(source), path)
    return path

"""Full-size random files in their real layouts, written without ever being in memory."""

import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import torch

from . import checkpoints

_BUFFER = 1 << 24
_NAMES = {torch.int8: "I8", torch.uint8: "U8", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


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
    return _write(path, entries, seed, sparse=sparse)


def write_text_encoder(path: Path, seed: int) -> Path:
    """The umT5-XXL encoder as ComfyUI's fp16 file has it: 11.4 GB, the values as in `write_expert`, with a small tokenizer."""
    from . import text_encoders

    spiece = text_encoders.tokenizer()
    entries = {name: (torch.float16, shape) for name, shape in text_encoders.shapes(4096, 64, 64, 256384).items()}
    entries["spiece_model"] = (torch.uint8, tuple(spiece.shape))
    return _write(path, entries, seed, given={"spiece_model": spiece.numpy().tobytes()})


def _write(path: Path, entries: dict, seed: int, given: dict[str, bytes] | None = None, sparse: bool = False) -> Path:
    """Streams a file of the named (dtype, shape) entries; `given` are contents that matter."""
    header, offset = {}, 0
    for key, (dtype, shape) in entries.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        if sparse:
            file.truncate(file.tell() + offset)
            return path
        sources = _sources(seed)
        for key, (dtype, shape) in entries.items():
            source, remaining = (given or {}).get(key, sources.get(dtype)), math.prod(shape) * dtype.itemsize
            while remaining > 0:
                remaining -= file.write(source[:remaining])
        file.flush()
        os.fsync(file.fileno())
    return path


def _sources(seed: int) -> dict[torch.dtype, bytes]:
    """A buffer of plausible weights of each type."""
    random = np.random.RandomState(seed)
    codes = random.randint(-128, 128, _BUFFER, dtype=np.int8).tobytes()
    floats = torch.from_numpy(random.standard_normal(_BUFFER // 2).astype(np.float32) * 0.02)
    narrow = {t: floats.to(t).view(torch.int16).numpy().tobytes() for t in (torch.bfloat16, torch.float16)}
    return {torch.int8: codes, torch.float32: np.full(_BUFFER // 4, 1e-3, np.float32).tobytes(), **narrow}


def write_pth_copy(source: Path, path: Path) -> Path:
    """The same tensors as a `.pth` file, streamed from the mapped source."""
    from safetensors.torch import load_file

    torch.save(load_file(source), path)
    return path

"""Full-size random int8 and 4-bit checkpoints in the published layouts, written without ever being in memory."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import torch

from . import checkpoints, lingbot

_BUFFER = 1 << 24
_NAMES = {torch.int8: "I8", torch.uint8: "U8", torch.float32: "F32", torch.bfloat16: "BF16"}


def write_expert(path: Path, seed: int, **size) -> Path:
    """A `.safetensors` file with every tensor of an int8 model of that size; the values repeat a random buffer."""
    entries = {}
    for key, shape in checkpoints.shapes(sla=True, **size).items():
        quantised = key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2 and "proj_l" not in key
        if quantised:
            layer = key.removesuffix(".weight")
            entries[f"{layer}.int8_weight"] = (torch.int8, shape)
            entries[f"{layer}.scale"] = (torch.float32, tuple(-(-n // checkpoints.TILE) for n in shape))
        else:
            entries[key] = (torch.float32 if "norm" in key else torch.bfloat16, shape)
    return write(path, seed, entries)


def write_nf4_expert(path: Path, seed: int, control: str = "cam", **size) -> Path:
    """A `.safetensors` file as bitsandbytes packs LingBot-World: every linear in NF4, doubly quantised, the rest in bfloat16."""
    entries, known = {}, {}
    for key, shape in lingbot.shapes(control, **size).items():
        if not key.endswith(".weight") or len(shape) != 2 or key == "patch_embedding.weight":
            patch = (shape[0], 36, 1, 2, 2)
            entries[key] = (torch.bfloat16, patch if key == "patch_embedding.weight" else shape)
            continue
        blocks = -(-math.prod(shape) // 64)
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.02}
        known[f"{key}.quant_state.bitsandbytes__nf4"] = json.dumps(state).encode()
        known[f"{key}.quant_map"] = np.linspace(-1, 1, 16, dtype=np.float32).tobytes()
        known[f"{key}.nested_quant_map"] = np.linspace(-1, 1, 256, dtype=np.float32).tobytes()
        entries[key] = (torch.uint8, (-(-math.prod(shape) // 2), 1))
        entries[f"{key}.absmax"] = (torch.uint8, (blocks,))
        entries[f"{key}.quant_map"] = (torch.float32, (16,))
        entries[f"{key}.nested_absmax"] = (torch.float32, (-(-blocks // 256),))
        entries[f"{key}.nested_quant_map"] = (torch.float32, (256,))
        entries[f"{key}.quant_state.bitsandbytes__nf4"] = (torch.uint8, (len(json.dumps(state)),))
    return write(path, seed, entries, known)


def write(
    path: Path, seed: int, entries: dict[str, tuple[torch.dtype, tuple]], known: dict[str, bytes] | None = None
) -> Path:
    """A `.safetensors` file with these tensors, by type and shape, whose values repeat a random buffer but for the `known`."""
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
        torch.uint8: codes,
        torch.bfloat16: floats.tobytes(),
        torch.float32: np.full(_BUFFER // 4, 1e-3, np.float32).tobytes(),
    }
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for key, (dtype, shape) in entries.items():
            remaining = math.prod(shape) * dtype.itemsize
            source = (known or {}).get(key, sources[dtype])
            while remaining > 0:
                remaining -= file.write(source[:remaining])
    return path


def write_pth_copy(source: Path, path: Path) -> Path:
    """The same tensors as a `.pth` file, streamed from the mapped source."""
    from safetensors.torch import load_file

    torch.save(load_file(source), path)
    return path

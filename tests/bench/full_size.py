"""Full-size random files in the published layouts, written in chunks."""

import json
import math
import struct
from pathlib import Path

import numpy as np
import torch

from ..support import checkpoints, lingbot, text_encoders

_BUFFER = 1 << 24
_NAMES = {
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
}


def write_expert(path: Path, seed: int, text_width: int = checkpoints.TEXT_DIM, **size) -> Path:
    """A `.safetensors` file with every tensor of an int8 model of that size; the values repeat a random buffer."""
    entries = {}
    for key, shape in checkpoints.shapes(sla=True, **size).items():
        shape = (shape[0], text_width) if key == "text_embedding.0.weight" else shape
        quantized = key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2 and "proj_l" not in key
        if quantized:
            layer = key.removesuffix(".weight")
            entries[f"{layer}.int8_weight"] = (torch.int8, shape)
            entries[f"{layer}.scale"] = (torch.float32, tuple(-(-n // checkpoints.TILE) for n in shape))
        else:
            entries[key] = (torch.float32 if "norm" in key else torch.bfloat16, shape)
    return write(path, seed, entries)


def write_bf16_expert(path: Path, seed: int, **size) -> Path:
    """A `.safetensors` file with every tensor of a bf16 model of that size."""
    shapes = checkpoints.shapes(sla=True, **size)
    return write(path, seed, {key: (torch.bfloat16, shape) for key, shape in shapes.items()})


def write_encoder(path: Path, seed: int, weights: str = "fp8", width: int = 4096) -> Path:
    """A umT5-XXL file with a tokenizer, in one of the two forms that ComfyUI's repackaged one has: fp16 (11.4 GB), or
    fp8, whose linears are scaled float8 (6.7 GB). Another `width` makes a smaller one."""
    tokenizer = text_encoders.tokenizer()
    entries = {"spiece_model": (torch.uint8, tuple(tokenizer.shape))}
    for key, shape in text_encoders.shapes(width=width, heads=width // 64, head_dim=64, vocabulary=256384).items():
        scaled = weights == "fp8" and len(shape) == 2 and key != "shared.weight" and "relative" not in key
        entries[key] = (torch.float8_e4m3fn if scaled else torch.float16, shape)
        if scaled:
            entries[key.removesuffix("weight") + "scale_weight"] = (torch.float32, (1,))
    if weights == "fp8":
        entries["scaled_fp8"] = (
            torch.float8_e4m3fn,
            (2,),
        )  # two: float8 is how they are stored, not how they are multiplied
    return write(path, seed, entries, {"spiece_model": tokenizer.numpy().tobytes()})


def write_nf4_expert(path: Path, seed: int, control: str = "cam", **size) -> Path:
    """A `.safetensors` file as bitsandbytes packs LingBot-World: every linear in NF4, doubly quantized, the rest in
    bfloat16."""
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


def write(path: Path, seed: int, entries: dict[str, tuple], given: dict[str, bytes] | None = None) -> Path:
    """A safetensors file of tensors by type and shape; those not `given` repeat a random buffer of their type."""
    sources = _sources(seed)
    with path.open("wb") as file:
        file.write(_header(entries))
        for key, (dtype, shape) in entries.items():
            if key in (given or {}):
                file.write(given[key])
                continue
            remaining = math.prod(shape) * dtype.itemsize
            while remaining > 0:
                remaining -= file.write(sources[dtype][:remaining])
    return path


def write_zeros(path: Path, entries: dict[str, tuple], given: dict[str, bytes]) -> Path:
    """A safetensors file of tensors by type and shape; those not `given` are zero, and take no space on a disk whose
    file system has sparse files."""
    with path.open("wb") as file:
        file.write(_header(entries))
        for key, (dtype, shape) in entries.items():
            size = math.prod(shape) * dtype.itemsize
            file.write(given[key]) if key in given else file.seek(size, 1)
        file.truncate()
    return path


def _header(entries: dict[str, tuple]) -> bytes:
    header, offset = {}, 0
    for key, (dtype, shape) in entries.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


def _sources(seed: int) -> dict[torch.dtype, bytes]:
    random = np.random.RandomState(seed)
    codes = random.randint(-128, 128, _BUFFER, dtype=np.int8).tobytes()
    normal = torch.from_numpy(random.standard_normal(_BUFFER // 2).astype(np.float32))
    return {
        torch.int8: codes,
        torch.uint8: codes,
        torch.bfloat16: (normal * 0.02).bfloat16().view(torch.int16).numpy().tobytes(),
        torch.float16: (normal * 0.02).half().view(torch.int16).numpy().tobytes(),
        torch.float8_e4m3fn: (normal * 20).to(torch.float8_e4m3fn).view(torch.int8).numpy().tobytes(),  # finite
        torch.float32: np.full(_BUFFER // 4, 1e-3, np.float32).tobytes(),
    }


def write_pth_copy(source: Path, path: Path) -> Path:
    """The same tensors as a `.pth` file, streamed from the mapped source."""
    from safetensors.torch import load_file

    torch.save(load_file(source), path)
    return path

"""Model files of full size that take no space: safetensors whose zeros are a hole in the file."""

import json
from pathlib import Path

import torch

_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int8: "I8", torch.uint8: "U8"}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A file with these tensors: those on the meta device become zeros, the others are written."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        start = file.tell()
        file.truncate(start + end)
        for name, tensor in tensors.items():
            if not tensor.is_meta:
                file.seek(start + header[name]["data_offsets"][0])
                file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return path

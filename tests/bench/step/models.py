"""Wan models of full size with random weights on the device, loaded by the pack's loader and by ComfyUI's.

The files that they are loaded from are sparse and hold zeros; the weights are drawn on the device, by seed and name, so
that a stock model and the quantized ones have the same."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

from ...support import checkpoints
from .. import full_size

STOCK = "bf16"  # the format of a stock model's file; the others are formats of `convert`
_COMFY_QUANT = json.dumps({"format": "int8_tensorwise"}).encode().ljust(32)


def write_empty(path: Path, weights: str, size: dict[str, int]) -> Path:
    """A `.safetensors` file of zeros with every tensor of a text-to-video model of that size (`dim`, `ffn_dim`,
    `layers`), in the format `weights`: bf16 for a stock model, else "int8_block" or "int8_rowwise" with a trained
    proj_l."""
    from ....turbo_core.convert import codec

    entries, given = {}, {}
    for name, shape in checkpoints.shapes(**size, in_channels=16, sla=weights != STOCK).items():
        if name == "patch_embedding.weight" and weights == STOCK:
            shape = (shape[0], 16, 1, 2, 2)
        quantized = name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2 and "proj_l" not in name
        stored = weights if weights != STOCK and quantized else torch.bfloat16
        for info in codec.stored_tensors(stored, name, shape):
            entries[info.name] = (info.dtype, info.shape)
            if info.name.endswith(".comfy_quant"):
                given[info.name] = _COMFY_QUANT
            elif info.name.endswith(".weight_scale"):  # the loader refuses a scale of zero
                given[info.name] = np.ones(info.shape, np.float32).tobytes()
    return full_size.write_zeros(path, entries, given)


def load(path: Path, weights: str, device: torch.device):
    """The ModelPatcher of a file of `write_empty`, computing in bfloat16, or in float32 on a CPU."""
    import comfy.sd

    from ....turbo_core.host.load import load_model

    if weights == STOCK:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return comfy.sd.load_diffusion_model(str(path), model_options={"dtype": dtype})
    return load_model(str(path))


@torch.no_grad()
def fill(patcher, seed: int) -> None:
    """Draws every weight of a loaded model where it lies, quantized by the pack's own quantizers."""
    from comfy.quant_ops import QuantizedTensor

    from ....kernels import quantize_block, quantize_row
    from ....turbo_core.host.quant import is_block_int8

    for name, weight in patcher.model.diffusion_model.named_parameters():
        generator = torch.Generator(weight.device).manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        drawn = torch.randn(tuple(weight.shape), generator=generator, device=weight.device)
        values = checkpoints.as_weight(name, drawn)
        if isinstance(weight, QuantizedTensor):
            codes, scale = (quantize_block if is_block_int8(weight) else quantize_row)(values.float())
            weight._qdata.copy_(codes)
            weight._params.scale.copy_(scale.view_as(weight._params.scale))
        else:
            weight.copy_(values)


def memory_needed(path: Path) -> int:
    """Bytes of the model in a file of `write_empty`."""
    return path.stat().st_size

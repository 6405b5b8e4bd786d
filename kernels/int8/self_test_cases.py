"""The calls on which a backend of int8 linear layers is compared with the definitions."""

from collections.abc import Iterator

import torch

from ..self_test import Case
from .reference import dequantize_block, dequantize_group, quantize_block, quantize_group, quantize_row

_SCALES = ("scales", "weight_scale")


def _decode(result: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return dequantize_block(*result, torch.float32)


def _decode_groups(result: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return dequantize_group(*result, torch.float32)


def int8(generator: torch.Generator, device: torch.device) -> Iterator[Case]:
    """Each product on few rows, and one on enough rows (over 2048) for the launch config of a video's layers;
    activations by group, which is the default, and by block; and a weight by channel."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, residual, gate, bias = draw(1, 140, 256), draw(1, 140, 256), draw(1, 1, 256), draw(256)
    weight, weight_scale = quantize_block(draw(256, 256) / 16)
    layer = {"weight": weight, "weight_scale": weight_scale, "bias": bias}
    yield Case("int8_linear", {"x": x} | layer, _SCALES)
    codes, scales = quantize_block(x)
    given = {"codes": codes, "scales": scales} | layer
    yield Case("int8_matmul_gelu_quantize", given | {"out_dtype": torch.float32}, _SCALES, _decode)
    yield Case("int8_linear", {"x": x, "activation": "group"} | layer, _SCALES)
    codes, scales = quantize_group(x)
    given = {"codes": codes, "scales": scales} | layer
    yield Case(
        "int8_matmul_gelu_quantize", given | {"out_dtype": torch.float32, "by": "group"}, _SCALES, _decode_groups
    )
    yield Case("int8_matmul_gate_residual", given | {"residual": residual, "gate": gate}, _SCALES)
    codes, scales = quantize_group(draw(1, 2060, 256))
    yield Case("int8_matmul", {"codes": codes, "scales": scales, "out_dtype": torch.float32} | layer, _SCALES)
    codes, scales = quantize_row(x)
    weight, weight_scale = quantize_row(draw(256, 256) / 16)
    given = {"codes": codes, "scales": scales, "weight": weight, "weight_scale": weight_scale, "bias": bias}
    yield Case("int8_matmul", given | {"out_dtype": torch.float32}, _SCALES)

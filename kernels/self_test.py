"""Small ragged inputs on which a backend is compared with the definitions, before it runs anything else on a device."""

from collections.abc import Iterator

import torch

from .attention import custom_ops as attention
from .backends import Operator, eight_bit_format
from .int8 import custom_ops as int8
from .int8.reference import dequantize_block, quantize_block
from .nf4.custom_ops import NF4
from .norm import custom_ops as norm

# bf16 inputs and output carry 2^-9 relative error each; a broken kernel is off by tens of per cent.
_TOLERANCE = 2e-2
_EXACT = ("freqs", "scales", "weight_scale", "absmax", "quant_map")  # arguments that are float32 in a bf16 model too


def fault(backend: str, family: str, device: torch.device) -> str | None:
    """What a backend gets wrong on a device, or None. NaN is wrong too; what it raises is left to the caller."""
    for operator, given in _cases(family, device):
        if backend not in operator.modules:
            continue
        # The definitions run on devices that have no bf16, the kernels are made for it.
        dtype = torch.float32 if backend == "torch" else torch.bfloat16
        expected = _float(operator.load("torch")(**given))
        moved = {name: _moved(name, value, device, dtype) for name, value in given.items()}
        actual = _float(operator.load(backend)(**moved))
        error = ((actual.cpu() - expected).norm() / expected.norm()).item()
        if not error < _TOLERANCE:
            return f"its self-test of {operator.function} is off by {error:.1%}"
    return None


def _moved(name: str, value, device: torch.device, dtype: torch.dtype):
    """The argument on the device, as a model that computes in `dtype` has it."""
    if isinstance(value, torch.dtype):
        return dtype
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() and name not in _EXACT else None)


def _float(result) -> torch.Tensor:
    """Codes and scales by block as the tensor they stand for."""
    return dequantize_block(*result, torch.float32) if isinstance(result, tuple) else result.float()


def _cases(family: str, device: torch.device) -> Iterator[tuple[Operator, dict]]:
    """Each operator of the family with arguments by name."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    if "attention" in family:
        given = dict(zip("qkv", draw(3, 1, 384 + 7, 1, 128), strict=True))
        given |= {"proj_weight": draw(128, 128) / 12, "proj_bias": draw(128), "topk": 1.0}
        if family == "attention":
            yield attention.SPARSE_LINEAR, given
        else:
            yield attention.SAGE_SPARSE_LINEAR, given | {"pv": eight_bit_format(device)[0]}
    elif family == "int8":
        x, residual, gate, bias = draw(1, 140, 256), draw(1, 140, 256), draw(1, 1, 256), draw(256)
        weight, weight_scale = quantize_block(draw(256, 256) / 16)
        layer = {"weight": weight, "weight_scale": weight_scale, "bias": bias}
        yield int8.LINEAR, {"x": x} | layer
        codes, scales = quantize_block(x)
        given = {"codes": codes, "scales": scales} | layer
        yield int8.GELU_QUANTIZE, given | {"out_dtype": torch.float32}
        yield int8.GATE_RESIDUAL, given | {"residual": residual, "gate": gate}
    elif family == "nf4":
        given = {"codes": torch.randint(256, (1000,), generator=generator, dtype=torch.uint8), "absmax": draw(32).abs()}
        given |= {"quant_map": draw(16), "nested_absmax": None, "nested_quant_map": None, "nested_offset": 0.0}
        sizes = {"blocksize": 64, "nested_blocksize": 256, "rows": 20, "columns": 100}
        yield NF4, given | sizes | {"dtype": torch.float32}
    else:
        x = draw(1, 17, 256)
        weight, (shift, scale) = draw(256), draw(2, 1, 1, 256)
        turn = draw(17, 64)
        freqs = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1).view(1, 17, 1, 64, 2, 2)
        yield norm.RMS_NORM_ROPE, {"x": x, "weight": weight, "freqs": freqs, "heads": 2, "eps": 1e-6}
        modulated = {"x": x, "shift": shift, "scale": scale, "eps": 1e-6}
        yield norm.LAYER_NORM_MODULATE, modulated
        yield norm.LAYER_NORM_MODULATE_QUANTIZE, modulated | {"by": "block"}

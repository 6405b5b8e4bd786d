"""The calls on which a backend of the normalizations is compared with the definitions."""

from collections.abc import Iterator

import torch

from ..int8.reference import dequantize_block, dequantize_group
from ..self_test import Case


def norm(generator: torch.Generator, device: torch.device) -> Iterator[Case]:
    """17 tokens of two heads, with one modulation for all."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x = draw(1, 17, 256)
    weight, (shift, scale) = draw(256), draw(2, 1, 1, 256)
    angle = draw(17, 64)
    freqs = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(1, 17, 1, 64, 2, 2)
    yield Case("rms_norm_rope", {"x": x, "weight": weight, "freqs": freqs, "heads": 2, "eps": 1e-6}, exact=("freqs",))
    given = {"x": x, "shift": shift, "scale": scale, "eps": 1e-6}
    yield Case("layer_norm_modulate", given)
    for by, dequantize in (("group", dequantize_group), ("block", dequantize_block)):
        yield Case(
            "layer_norm_modulate_quantize",
            given | {"by": by},
            decode=lambda y, dequantize=dequantize: dequantize(y[0], y[1], torch.float32),
        )


def rms_norm_silu_pad(generator: torch.Generator, device: torch.device) -> Iterator[Case]:
    """Two frames of 3 x 5 pixels behind two others, channels last, and a first frame."""
    x, past = torch.randn(2, 1, 2, 3, 5, 96, generator=generator).movedim(-1, 2)
    for given in ({"x": x, "past": past}, {"x": x[:, :, :1], "past": None}):
        weight = torch.randn(96, generator=generator)
        yield Case("rms_norm_silu_pad", given | {"weight": weight})

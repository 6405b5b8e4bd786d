"""Random tensors and error measures for the kernels' tests."""

import torch

from ...kernels.int8.reference import QUANTIZERS
from .interpreter import DEVICE

# What the Triton kernels are tested in: the interpreter truncates to bfloat16.
DTYPES = (torch.float32, torch.float16) + (torch.bfloat16,) * (DEVICE.type == "cuda")
DTYPE = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16  # of what a GPU does not compute in float32


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device="cpu") -> torch.Tensor:
    """Standard normal values, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def turns(length: int, head_dim: int, device="cpu") -> torch.Tensor:
    """Rotations as ComfyUI's `rope_encode` lays them out, by drawn angles."""
    angle = draw(length, head_dim // 2, seed=length, device=device)
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(1, length, 1, -1, 2, 2)


def int8_operands(m: int, n: int, k: int, by: str = "block", batch: tuple[int, ...] = (), device="cpu") -> tuple:
    """Codes and scales of activations [*batch, m, k] and of a weight [n, k], which is by block."""
    weight = draw(n, k, seed=1, device=device) / k**0.5
    return *QUANTIZERS[by](draw(*batch, m, k, device=device)), *QUANTIZERS["block"](weight)


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    """The L2 norm of the difference over that of `want`, in float64."""
    assert got.shape == want.shape
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


def spread(scales: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """The int8 scale of every element, float64: of blocks [..., tiles, tiles], of groups [..., tiles, M] or of rows
    [..., M]."""
    scales = scales.double()
    if scales.ndim < codes.ndim:
        return scales[..., None].expand(codes.shape)
    m, k = codes.shape[-2:]
    if scales.shape[-2:] == (-(-k // 128), m):
        return scales.mT.repeat_interleave(128, -1)[..., :k]
    return scales.repeat_interleave(128, -2).repeat_interleave(128, -1)[..., :m, :k]


def decode(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The float64 values of int8 codes."""
    return codes.double() * spread(scales, codes)

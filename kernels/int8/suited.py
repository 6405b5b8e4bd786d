"""Which int8 weights suit a GPU: those with a scale for each 128x128 tile, and activations by group, or those with a
scale for each output channel, and activations by row."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch

from ..backends import triton_unavailable

TILES, CHANNELS = "int8_block", "int8_rowwise"  # as Convert names them
# Predicted seconds of a step with weights by channel over those by tile, by compute capability: 14B at 720p, top-k 0.1,
# attention in mode auto. `dev.py bench predict` derives them from compiled code; none is measured.
PREDICTED: Mapping[tuple[int, int], float] = MappingProxyType(
    {(8, 0): 0.86, (8, 6): 0.92, (8, 9): 0.94, (9, 0): 0.82, (12, 0): 0.94}
)
# By tile and group, outlier channels cost 2.4 % of a token's output instead of 6.6 % (tests/kernels/test_int8.py), so
# weights by channel are chosen only where a step takes less than this share of the time.
_WORTH_IT = 0.9


class Suited(NamedTuple):
    weights: str  # TILES or CHANNELS
    reason: str


def suited_weights(device: torch.device) -> Suited:
    """The int8 weights that Convert should write for a device, and why."""
    if device.type != "cuda" or triton_unavailable(device) is not None or torch.version.hip is not None:
        return Suited(TILES, f"more exact than {CHANNELS}, and no prediction says that this device is faster with it")
    return suited_to(torch.cuda.get_device_capability(device))


def suited_to(capability: tuple[int, int]) -> Suited:
    """As `suited_weights`, for a compute capability of NVIDIA."""
    share = PREDICTED.get(capability)
    if share is None:
        return Suited(TILES, f"more exact than {CHANNELS}, and no prediction says that this GPU is faster with it")
    less = f"a step is predicted to take {1 - share:.0%} less time with {CHANNELS}"
    if share < _WORTH_IT:
        return Suited(CHANNELS, f"{less} than with {TILES}, which is more exact where channels are outliers")
    return Suited(TILES, f"more exact where channels are outliers; {less}")

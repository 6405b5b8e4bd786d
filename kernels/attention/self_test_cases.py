"""The calls on which a backend of sparse attention is compared with the definitions."""

from collections.abc import Iterator

import torch

from ..self_test import Case
from .format import BLOCK_K, BLOCK_Q
from .pv_format import sage_pv_format

# Means of the blocks of q and k along one direction. Their products are so far apart that no rounding changes the order
# of the key blocks, and query blocks of opposite sign select different ones.
_Q_MEANS = (4.0, -4.0, 4.0, -4.0)
_K_MEANS = (3.0, -1.0, 2.0, 0.0, -3.0, 1.0, -2.0)


def _inputs(generator: torch.Generator) -> tuple[dict, dict]:
    """Arguments of `block_map`, which selects 3 of 7 key blocks, and the further arguments of attention."""
    length = 3 * BLOCK_Q + 7
    q, k, v = torch.randn(3, 1, length, 1, 128, generator=generator)
    direction = torch.nn.functional.normalize(torch.randn(128, generator=generator), dim=0)
    for x, means, block in ((q, _Q_MEANS, BLOCK_Q), (k, _K_MEANS, BLOCK_K)):
        token_means = torch.tensor(means).repeat_interleave(block)[:length]
        x += token_means[None, :, None, None] * direction
    weight, bias = torch.randn(128, 128, generator=generator) / 12, torch.randn(128, generator=generator)
    return {"q": q, "k": k, "topk": 0.5}, {"v": v, "proj_weight": weight, "proj_bias": bias}


def attention(generator: torch.Generator, device: torch.device) -> Iterator[Case]:
    """The block map by itself, then attention in 16 bits."""
    given, others = _inputs(generator)
    yield Case("block_map", given)
    yield Case("sparse_linear_attention", given | others)


def sage(generator: torch.Generator, device: torch.device) -> Iterator[Case]:
    """The block map by itself, then sage attention in the format that the device runs."""
    given, others = _inputs(generator)
    yield Case("block_map", given)
    yield Case("sage_sparse_linear_attention", given | others | {"pv": sage_pv_format(device).name})

"""A step on several GPUs: the kernels of one GPU divided by their number, and what they exchange."""

from typing import NamedTuple

from ....turbo_core.parallel.shares import TILE, exchanged_bytes
from .gpus import GPU
from .kernels import BANDWIDTH
from .step import Model

HEAD_DIM = 128
LATENCY = 30e-6  # seconds of a collective beside its bytes (an assumption)
# Times that a rank's q, k, v and output pass through its memory for the exchanges: written in the order they are sent
# in, read, and what is received written, read and written in the order of tokens.
PASSES = 6


class Link(NamedTuple):
    """`bytes_per_second` each way of one GPU, as published; `direct`: from GPU to GPU, not by way of RAM, which GeForce
    cards are left with."""

    gpu: str
    bytes_per_second: float
    direct: bool


LINKS = {
    "PCIe 4": Link("RTX 4090", 32e9, False),
    "PCIe 5": Link("RTX 5090", 64e9, False),
    "NVLink": Link("H100 SXM", 450e9, True),
}


def works(model: Model, ranks: int) -> bool:
    """Whether the heads can be divided."""
    return model.width // HEAD_DIM % ranks == 0


def exchange_seconds(gpu: GPU, link: Link, model: Model, ranks: int) -> float:
    """Of one step, not hidden behind any kernel."""
    sent = max(exchanged_bytes(model.tokens, rank, ranks, model.width, 2) for rank in range(ranks))
    rate = link.bytes_per_second * BANDWIDTH * (1 if link.direct else 0.5)
    copied = PASSES * 4 * model.hidden / ranks / (gpu.bandwidth * 1e9 * BANDWIDTH)
    return model.layers * (sent / rate + copied + 2 * LATENCY)


def largest_share(model: Model, ranks: int) -> float:
    """The tokens of the rank with the most of them, over all."""
    tiles = -(-model.tokens // TILE)
    return -(-tiles // ranks) / tiles

"""Settings of sparse-linear attention, as a node passes them to the attention layers."""

from typing import Literal, NamedTuple

from ..kernels import AUTOMATIC
from .errors import TurboError

Mode = Literal["auto", "sla", "sagesla", "dense"]
MODES: tuple[Mode, ...] = ("auto", "sla", "sagesla", "dense")
DEFAULT_TOPK = 0.1


class SLA(NamedTuple):
    """One layer's attention. Plain data, so that torch.compile guards on it and clones of a model keep their own.

    `linear` adds the trained linear branch; without it the attention is block-sparse only. `pv` is the format of sage
    attention (see `kernels.sparse_linear_attention`), empty for 16 bits; by default the device decides."""

    topk: float = DEFAULT_TOPK
    linear: bool = True
    pv: str = AUTOMATIC


def parse_blocks(text: str, layers: int) -> set[int]:
    """Block numbers from "0,38-39"; an empty text means none. Raises TurboError for anything else or beyond
    `layers`."""
    blocks: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise TurboError(
                f"dense_blocks has {part!r}: write block numbers and ranges, for example 0,38-39."
            ) from None
        if not span or span.start < 0 or span.stop > layers:
            raise TurboError(f"dense_blocks has {part!r}: this model's blocks are 0 to {layers - 1}.")
        blocks.update(span)
    return blocks

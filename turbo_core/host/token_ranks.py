"""A network call on several ranks: each runs the blocks on its own tokens.

ComfyUI's forward runs on every rank with the same inputs, so that everything outside of the blocks stays as it is: it
takes a few thousandths of a step. The first block is given this rank's tokens, and the last one's output is
gathered."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..parallel.group import Group
from ..parallel.shares import token_slices
from .model import INPUTS, BlockInputs
from .self_attention import RANKS


class TokenRanks:
    """The share of one rank in one network call, for `transformer_options`.

    `between` is called before each block, and may raise."""

    def __init__(self, group: Group, blocks: int, between: Callable[[], None] = lambda: None):
        self._group, self._last, self._between = group, blocks - 1, between
        self._shares: list[slice] = []

    def options(self) -> dict[str, Any]:
        """The `transformer_options` with which a network call computes this rank's share."""
        blocks = {("double_block", i): partial(self._run_block, i) for i in range(self._last + 1)}
        return {"patches_replace": {"dit": blocks}, RANKS: self}

    def to_heads(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q, k and v [B, tokens of this rank, H, D] -> [3, B, all tokens, H / ranks, D]."""
        return self._group.to_heads(q, k, v, self._shares)

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """[B, all tokens, H / ranks * D] -> [B, tokens of this rank, H * D]."""
        return self._group.to_tokens(x, self._shares)

    def _run_block(self, index: int, arguments: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """Called by ComfyUI in place of a block."""
        self._between()
        x, options = arguments["img"], arguments["transformer_options"]
        if index == 0:
            self._shares = token_slices(x.shape[1], self._group.size)
            own = self._shares[self._group.rank]
            options[INPUTS] = options.get(INPUTS, BlockInputs()).cut(own)
            x = x[:, own]
        freqs = arguments["pe"][:, self._shares[self._group.rank]]
        x = extra["original_block"](arguments | {"img": x, "pe": freqs})["img"]
        return {"img": x if index < self._last else self._group.gather(x.contiguous(), self._shares)}

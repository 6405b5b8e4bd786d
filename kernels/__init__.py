"""Operators of TurboDiffusion on tensors: `ops` are the entries, `reference/` says in plain torch what each computes, `triton/`
is how it runs on a GPU, `backends` decides between them."""

from .backends import Choice, NoBackendError, use_backend
from .ops import block_map, sparse_linear_attention
from .tally import counting

__all__ = ["Choice", "NoBackendError", "block_map", "counting", "sparse_linear_attention", "use_backend"]

"""Self-attention of ComfyUI's Wan network: dense, or sparse-linear with TurboDiffusion's trained projection."""

from typing import Any

import comfy.ops
import torch
from comfy.ldm.wan.model import WanSelfAttention

from ...kernels import sparse_linear_attention
from ..attention import SLA
from ..checkpoint.layout import HEAD_DIM
from ..errors import TurboError
from .features import dense_attention, fetched
from .fused import norm_rope
from .quant import Quantized
from .side_paths import side_paths

RANKS = "turbodiffusion_ranks"  # the key of TokenRanks in `transformer_options`, where a video is divided between ranks


def build_linear(in_features: int, out_features: int, operation_settings: dict[str, Any]) -> torch.nn.Linear:
    """A linear of ComfyUI's `operations`."""
    device, dtype = operation_settings.get("device"), operation_settings.get("dtype")
    layer: torch.nn.Linear = operation_settings["operations"].Linear(
        in_features, out_features, device=device, dtype=dtype
    )
    return layer


class LocalAttention(torch.nn.Module):
    """The projection of the linear branch."""

    def __init__(self, operation_settings: dict[str, Any]):
        super().__init__()
        self.proj_l = build_linear(HEAD_DIM, HEAD_DIM, operation_settings)


class AttentionOp(torch.nn.Module):
    """Gives the projection upstream's name, `attn_op.local_attn.proj_l`, by which checkpoints, LoRA and offload find
    it."""

    def __init__(self, operation_settings: dict[str, Any]):
        super().__init__()
        self.local_attn = LocalAttention(operation_settings)


class TurboSelfAttention(WanSelfAttention):
    """Self-attention that is dense while `sla` is None, else sparse-linear.

    `sla` is plain data: nodes change it per model clone by an object patch, which torch.compile's guards see."""

    def __init__(self, *args: Any, trained_sla: bool, operation_settings: dict[str, Any], **kwargs: Any):
        super().__init__(*args, operation_settings=operation_settings, **kwargs)
        self.sla = SLA() if trained_sla else None
        self.attn_op = AttentionOp(operation_settings) if trained_sla else None

    def forward(
        self,
        x: torch.Tensor,
        freqs: torch.Tensor,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature
        **kwargs: Any,
    ) -> torch.Tensor:
        """x [B, L, dim] -> [B, L, dim]; freqs as from `rope_encode`."""
        if self.sla is None and RANKS not in transformer_options:
            return super().forward(x, freqs, transformer_options=transformer_options, **kwargs)
        return self.o(self.attend(x, freqs, transformer_options))

    def attend(
        self, x: torch.Tensor | Quantized, freqs: torch.Tensor, transformer_options: dict[str, Any]
    ) -> torch.Tensor:
        """Attention before its output projection: x [B, L, dim], quantized only if q, k and v take codes -> [B, L,
        dim].

        On several ranks L is the tokens of this one; attention runs over all tokens for this rank's heads."""
        q = norm_rope(self.norm_q, self.q(x), freqs, self.num_heads)
        k = norm_rope(self.norm_k, self.k(x), freqs, self.num_heads)
        v = self.v(x).view(q.shape)
        ranks = transformer_options.get(RANKS)
        if ranks is not None:
            q, k, v = ranks.to_heads(q, k, v)
        if self.sla is None:
            out = dense_attention(self, q.flatten(2), k.flatten(2), v.flatten(2), transformer_options)
        else:
            out = self._sparse_linear_attention(q, k, v, self.sla).flatten(2)
        for patch in transformer_options.get("patches", {}).get("attn1_patch", ()):
            out = patch({"x": out, "q": q, "k": k, "transformer_options": transformer_options})
        return out if ranks is None else ranks.to_tokens(out)

    def _sparse_linear_attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sla: SLA) -> torch.Tensor:
        """q, k, v [B, L, heads, head_dim] -> the same shape."""
        if not sla.linear:
            return sparse_linear_attention(q, k, v, None, None, sla.topk, sla.pv)
        if self.attn_op is None:
            raise TurboError(
                "Sparse-linear attention needs a checkpoint with trained proj_l weights, and this one has none."
            )
        comfy.ops.run_every_op()
        # The operator fuses the projection, so its weights are fetched (offload, LoRA) as the layer itself would.
        projection = self.attn_op.local_attn.proj_l
        changes = [path.change(q) for path in side_paths(projection)]  # first: these fetch weights too
        with fetched(projection, q) as (weight, bias):
            for change in changes:
                weight = weight + change
            return sparse_linear_attention(q, k, v, weight, bias, sla.topk, sla.pv)

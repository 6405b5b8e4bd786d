"""Our blocks, self-attention and head for ComfyUI's Wan networks.

A network of ours is a subclass of TurboWanModel and of one of ComfyUI's classes (`subclass_of`), so that ComfyUI's own
forward runs, of whichever variant and version it is. In a stock Wan file only the self-attention is replaced. For a
TurboWan file time embedding, modulation and head are computed in float32, as in its training. `fused` has the operators
around the linears of its blocks and decides when they are fused. Cross-attention is ComfyUI's class, which other packs
patch: `fused` replaces it only where none has."""

from typing import Any, NamedTuple

import comfy.model_management
import comfy.model_prefetch
import torch
from comfy.ldm.wan.model import (
    Head,
    VaceWanAttentionBlock,
    WanAttentionBlock,
    WanI2VCrossAttention,
    WanModel,
    repeat_e,
)

from .fused import add_cross_attention, add_gated, add_gated_linear, linear_gelu, norm_modulate
from .quant import is_replaced
from .self_attention import TurboSelfAttention
from .side_paths import side_path_operations

INPUTS = "turbodiffusion"  # the key of BlockInputs in `transformer_options`


class BlockInputs(NamedTuple):
    """The inputs of a turbo network's blocks beside ComfyUI's arguments. `queue`: ComfyUI's prefetch queue, or None;
    `camera`: for blocks with camera layers, an object with a method `cut`, or None."""

    queue: Any = None
    camera: Any = None

    def cut(self, tokens: slice) -> "BlockInputs":
        """The inputs for blocks that run on this range of the video's tokens."""
        return self if self.camera is None else self._replace(camera=self.camera.cut(tokens.start, tokens.stop))


class TurboBlock(WanAttentionBlock):
    """A Wan transformer block that computes as TurboDiffusion does."""

    def prefetch(self, queue: Any, device: torch.device) -> None:
        """With dynamic VRAM, starts the copy of the next block's weights to the device."""
        comfy.model_prefetch.prefetch_queue_pop(queue, device, self)

    def inject(self, x: torch.Tensor, camera: Any) -> torch.Tensor:
        """x [B, L, dim] between self- and cross-attention -> the same shape; a subclass may change it, in place or
        not."""
        return x

    def forward(
        self,
        x: torch.Tensor,
        e: torch.Tensor,
        freqs: torch.Tensor,
        context: torch.Tensor,
        context_img_len: int | None = 257,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature
        **kwargs: Any,
    ) -> torch.Tensor:
        """x [B, L, dim]; e [B, 6, dim] or [B, frames, 6, dim] in float32 -> [B, L, dim] in the dtype of `context`.

        The first block is given x in float32 (see TurboWanModel.forward_orig)."""
        inputs = transformer_options.get(INPUTS, BlockInputs())
        self.prefetch(inputs.queue, x.device)
        e = e.unsqueeze(1) if e.ndim == 3 else e
        modulation = comfy.model_management.cast_to(self.modulation, dtype=torch.float32, device=x.device)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (modulation.unsqueeze(0) + e).unbind(2)
        x = self._self_attention(x.to(context.dtype).contiguous(), shift, scale, gate, freqs, transformer_options)
        x = self.inject(x, inputs.camera)
        x = add_cross_attention(x, self.norm3, self.cross_attn, context, context_img_len, transformer_options)
        for patch in transformer_options.get("patches", {}).get("attn2_patch", ()):
            x = patch({"x": x, "transformer_options": transformer_options})
        return self._feed_forward(x, ffn_shift, ffn_scale, ffn_gate)

    def _self_attention(
        self,
        x: torch.Tensor,
        shift: torch.Tensor,
        scale: torch.Tensor,
        gate: torch.Tensor,
        freqs: torch.Tensor,
        transformer_options: dict[str, Any],
    ) -> torch.Tensor:
        attention = self.self_attn
        if is_replaced(attention):
            y = norm_modulate(x, shift, scale, self.norm1.eps)
            return add_gated(x, attention(y, freqs, transformer_options=transformer_options), gate)
        y = norm_modulate(x, shift, scale, self.norm1.eps, attention.q, attention.k, attention.v)
        return add_gated_linear(x, attention.o, attention.attend(y, freqs, transformer_options), gate)

    def _feed_forward(
        self, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, gate: torch.Tensor
    ) -> torch.Tensor:
        if is_replaced(self.ffn):
            return add_gated(x, self.ffn(norm_modulate(x, shift, scale, self.norm2.eps)), gate)
        up, down = self.ffn[0], self.ffn[2]
        y = linear_gelu(up, norm_modulate(x, shift, scale, self.norm2.eps, up), down)
        return add_gated_linear(x, down, y, gate)


class TurboVaceBlock(VaceWanAttentionBlock, TurboBlock):
    """A block of VACE's control branch, which ComfyUI runs between the others."""

    def prefetch(self, queue: Any, device: torch.device) -> None:
        """Does nothing: the queue holds the main blocks."""


class TurboHead(Head):
    """ComfyUI's head, modulated in float32."""

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """x [B, L, dim], e [B, dim] or [B, frames, dim] in float32 -> patches [B, L, 4 * channels] in float32."""
        e = e.unsqueeze(1) if e.ndim == 2 else e
        modulation = comfy.model_management.cast_to(self.modulation, dtype=torch.float32, device=x.device)
        shift, scale = (repeat_e(part, x) for part in (modulation.unsqueeze(0) + e.unsqueeze(2)).unbind(2))
        return self.head(torch.addcmul(shift, self.norm(x).float(), 1 + scale))


class TurboWanModel(WanModel):
    """ComfyUI's Wan network with our self-attention. `turbo`: with TurboDiffusion's numerics; `trained_sla`: the main
    blocks have `proj_l`.

    `operations` must cast weights to their input's dtype (comfy.ops.manual_cast or mixed precision)."""

    block_class: type[TurboBlock] = TurboBlock

    def __init__(
        self,
        *args: Any,
        turbo: bool = False,
        trained_sla: bool = False,
        operations: Any = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ):
        operations = side_path_operations(operations)
        super().__init__(*args, operations=operations, device=device, dtype=dtype, **kwargs)
        self.turbo = turbo
        settings = {"operations": operations, "device": device, "dtype": dtype}
        if turbo:
            self._replace_blocks(settings)
            self.head = TurboHead(self.dim, self.out_dim, self.patch_size, self.eps, operation_settings=settings)
        for name, block in self.named_modules():
            if isinstance(block, WanAttentionBlock):
                sizes = (block.dim, block.num_heads, block.window_size, block.qk_norm, block.eps)
                trained = trained_sla and name.startswith("blocks.")  # no published model has it in VACE's blocks
                block.self_attn = TurboSelfAttention(*sizes, trained_sla=trained, operation_settings=settings)

    def _replace_blocks(self, settings: dict[str, Any]) -> None:
        """Replaces ComfyUI's blocks by ours."""
        classes = {WanAttentionBlock: self.block_class, VaceWanAttentionBlock: TurboVaceBlock}
        for name, block in list(self.named_modules()):
            if type(block) not in classes:
                continue
            kind = "i2v_cross_attn" if isinstance(block.cross_attn, WanI2VCrossAttention) else "t2v_cross_attn"
            sizes = (block.dim, block.ffn_dim, block.num_heads, block.window_size)
            options = {"block_id": block.block_id} if isinstance(block, VaceWanAttentionBlock) else {}
            ours = classes[type(block)](
                kind, *sizes, block.qk_norm, block.cross_attn_norm, block.eps, operation_settings=settings, **options
            )
            self.set_submodule(name, ours)

    def camera_of(self, x: torch.Tensor, dtype: torch.dtype, **kwargs: Any) -> Any:
        """The camera for `inject` of every block, from the network's input x [B, C, T, H, W] and its conditioning; None
        in a network without camera layers."""
        return None

    def forward_orig(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        context: torch.Tensor,
        *args: Any,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature
        **kwargs: Any,
    ) -> torch.Tensor:
        """ComfyUI's own, for x [B, C, T, H, W], t [B] (0 to 1000) and context [B, tokens, text width].

        ComfyUI rounds the sinusoid of a timestep to the dtype of x before the time embedding, whose result would be off
        by 0.4 % in bfloat16. So a turbo network is given x in float32, and each block computes in the dtype of
        `context`."""
        if not self.turbo:
            return super().forward_orig(x, t, context, *args, transformer_options=transformer_options, **kwargs)
        queue = comfy.model_prefetch.make_prefetch_queue(list(self.blocks), x.device, transformer_options)
        transformer_options[INPUTS] = BlockInputs(queue, self.camera_of(x, context.dtype, **kwargs))
        out = super().forward_orig(x.float(), t, context, *args, transformer_options=transformer_options, **kwargs)
        comfy.model_prefetch.prefetch_queue_pop(queue, x.device, None)
        return out


def subclass_of(ours: type, host: type) -> type:
    """`ours`, which extends a base of ComfyUI's class `host`, as a subclass of `host`."""
    return ours if issubclass(ours, host) else type(f"Turbo{host.__name__}", (ours, host), {})

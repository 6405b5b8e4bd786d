"""ComfyUI's Wan network with sparse-linear attention and TurboDiffusion's numerics.

A stock Wan file runs ComfyUI's own code unchanged. For a TurboWan file time embedding, modulation and head are computed
in float32, as in its training. `fused` has the operators around the linears of its blocks and decides when they are
fused. Cross-attention is ComfyUI's class, which other packs patch, so nothing is fused around its projections."""

from functools import partial
from typing import Any

import comfy.model_management
import comfy.model_prefetch
import torch
from comfy.ldm.wan.model import Head, WanAttentionBlock, WanModel, repeat_e, sinusoidal_embedding_1d

from .fused import add_gated, add_gated_linear, linear_gelu, norm_modulate
from .quant import is_replaced
from .self_attention import TurboSelfAttention
from .side_paths import side_path_operations


class TurboBlock(WanAttentionBlock):
    """A Wan transformer block with `TurboSelfAttention`; with `turbo` it computes as TurboDiffusion does."""

    def __init__(
        self,
        cross_attn_type: str,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        window_size: tuple[int, int] = (-1, -1),
        qk_norm: bool = True,
        cross_attn_norm: bool = False,
        eps: float = 1e-6,
        *,
        turbo: bool,
        trained_sla: bool,
        operation_settings: dict[str, Any],
    ):
        super().__init__(
            cross_attn_type,
            dim,
            ffn_dim,
            num_heads,
            window_size,
            qk_norm,
            cross_attn_norm,
            eps,
            operation_settings=operation_settings,
        )
        self.turbo = turbo
        self.self_attn = TurboSelfAttention(
            dim, num_heads, window_size, qk_norm, eps, trained_sla=trained_sla, operation_settings=operation_settings
        )

    def inject(self, x: torch.Tensor) -> torch.Tensor:
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
        *,
        injected: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """x [B, L, dim]; e [B, 1, 6, dim] in float32 for a TurboWan file; `injected` goes to `inject` -> [B, L, dim] in
        x's dtype."""
        if not self.turbo:
            return super().forward(
                x, e, freqs, context, context_img_len=context_img_len, transformer_options=transformer_options, **kwargs
            )
        modulation = comfy.model_management.cast_to(self.modulation, dtype=torch.float32, device=x.device)
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (modulation.unsqueeze(0) + e).unbind(2)
        x = self._self_attention(x.contiguous(), shift, scale, gate, freqs, transformer_options)
        x = self.inject(x, **injected or {})
        x = x + self.cross_attn(
            self.norm3(x), context, context_img_len=context_img_len, transformer_options=transformer_options
        )
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


class TurboHead(Head):
    """ComfyUI's head, modulated in float32."""

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        """x [B, L, dim], e [B, 1, dim] in float32 -> patches [B, L, 64] in float32."""
        modulation = comfy.model_management.cast_to(self.modulation, dtype=torch.float32, device=x.device)
        shift, scale = (repeat_e(part, x) for part in (modulation.unsqueeze(0) + e.unsqueeze(2)).unbind(2))
        return self.head(torch.addcmul(shift, self.norm(x).float(), 1 + scale))


class TurboWanModel(WanModel):
    """WanModel with `TurboBlock`s. `turbo`: with TurboDiffusion's numerics; `trained_sla`: the file has `proj_l`.

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
        block = partial(self.block_class, turbo=turbo, trained_sla=trained_sla)
        super().__init__(*args, wan_attn_block_class=block, operations=operations, device=device, dtype=dtype, **kwargs)
        self.turbo = turbo
        if turbo:
            settings = {"operations": operations, "device": device, "dtype": dtype}
            self.head = TurboHead(self.dim, self.out_dim, self.patch_size, self.eps, operation_settings=settings)

    def block_inputs(self, grid: torch.Size, dtype: torch.dtype, **kwargs: Any) -> dict[str, Any]:
        """The keyword arguments of every block's `inject`, from the conditioning in `kwargs` and the token grid
        (frames, height, width)."""
        return {}

    def forward_orig(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        context: torch.Tensor,
        clip_fea: torch.Tensor | None = None,
        freqs: torch.Tensor | None = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - ComfyUI's signature
        context_latents: list[torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """x [B, C, T, H, W], t [B] (0 to 1000), context [B, tokens, text width] -> velocity [B, 16, T, H, W].

        `context_latents`: in-context references [B, C, T, H, W], whose tokens follow those of x and are dropped before
        the head."""
        if not self.turbo:
            options = {"transformer_options": transformer_options, "context_latents": context_latents}
            return super().forward_orig(x, t, context, clip_fea=clip_fea, freqs=freqs, **options, **kwargs)
        latent = x
        x = self.patch_embedding(x.float()).to(x.dtype)
        grid = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        length = x.shape[1]
        for reference in context_latents or ():  # reference videos and images; `freqs` covers their tokens
            tokens = self.patch_embedding(reference.to(device=x.device, dtype=torch.float32)).to(x.dtype)
            x = torch.cat([x, tokens.flatten(2).transpose(1, 2)], dim=1)
        transformer_options.update(grid_sizes=grid, total_blocks=len(self.blocks), block_type="double")

        e = self.time_embedding(sinusoidal_embedding_1d(self.freq_dim, t.flatten())).reshape(t.shape[0], -1, self.dim)
        e0 = self.time_projection(e).unflatten(2, (6, self.dim))
        context = self.text_embedding(context)
        image_tokens = None
        if clip_fea is not None:
            image_tokens = clip_fea.shape[-2]
            if self.img_emb is not None:
                context = torch.cat([self.img_emb(clip_fea), context], dim=1)

        injected = self.block_inputs(grid, x.dtype, **kwargs)
        replacements = transformer_options.get("patches_replace", {}).get("dit", {})
        after_block = transformer_options.get("patches", {}).get("double_block", ())
        # With dynamic VRAM the next block's weights are copied to the device while this one computes; else there is no
        # queue.
        queue = comfy.model_prefetch.make_prefetch_queue(list(self.blocks), x.device, transformer_options)
        for i, block in enumerate(self.blocks):
            comfy.model_prefetch.prefetch_queue_pop(queue, x.device, block)
            transformer_options["block_index"] = i
            replacement = replacements.get(("double_block", i))
            if replacement is None:
                x = block(
                    x,
                    e=e0,
                    freqs=freqs,
                    context=context,
                    context_img_len=image_tokens,
                    transformer_options=transformer_options,
                    injected=injected,
                )
            else:
                arguments = {
                    "img": x,
                    "txt": context,
                    "vec": e0,
                    "pe": freqs,
                    "transformer_options": transformer_options,
                }
                x = replacement(arguments, {"original_block": partial(_replaceable, block, image_tokens, injected)})[
                    "img"
                ]
            for patch in after_block:
                x = patch(
                    {
                        "img": x,
                        "x": latent,
                        "vec": e,
                        "block_index": i,
                        "img_offset": 0,
                        "transformer_options": transformer_options,
                    }
                )["img"]
        comfy.model_prefetch.prefetch_queue_pop(queue, x.device, None)
        return self.unpatchify(self.head(x[:, :length], e), grid)


def _replaceable(
    block: TurboBlock, image_tokens: int | None, injected: dict[str, Any], args: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """A block in the calling convention of ComfyUI's `patches_replace`."""
    return {
        "img": block(
            args["img"],
            context=args["txt"],
            e=args["vec"],
            freqs=args["pe"],
            context_img_len=image_tokens,
            transformer_options=args["transformer_options"],
            injected=injected,
        )
    }

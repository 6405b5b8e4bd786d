"""The normalizations in Triton. Imported only when a GPU tensor needs them."""

from .layer_norm import layer_norm_modulate, layer_norm_modulate_quantize
from .rms_norm import rms_norm_rope
from .rms_norm_silu import rms_norm_silu_pad

__all__ = ["layer_norm_modulate", "layer_norm_modulate_quantize", "rms_norm_rope", "rms_norm_silu_pad"]

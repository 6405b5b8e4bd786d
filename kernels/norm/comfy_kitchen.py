"""comfy_kitchen's `adaln` and `apply_rope1`, from its compiled backends alone: they compute the definitions
(`reference`) in float32, rounded where these round. Its eager and Triton forms round between the steps, or differ by
version. Its `rms_rope` normalizes each head by itself, which is another function. Imported only where comfy_kitchen is
installed."""

import functools

import torch
import torch.nn.functional as F
from comfy_kitchen.registry import registry

_COMPILED = ("cuda", "hip")


def _example(function: str) -> dict:
    x = torch.empty(1, 2, 2, 128, dtype=torch.bfloat16, device="cuda")
    if function == "apply_rope1":
        return {"x": x, "freqs_cis": torch.empty(1, 2, 1, 64, 2, 2, device="cuda")}
    modulation = torch.empty(1, 1, 128, device="cuda")
    return {"x": x[:, :, 0], "scale": modulation, "shift": modulation}


@functools.cache
def _backend(function: str) -> tuple[str | None, str]:
    """The compiled backend whose declared constraints allow the function, or None and each backend's reason."""
    reasons = []
    for name in _COMPILED:
        if not registry.is_available(name):
            status = registry.list_backends().get(name, {})
            reasons.append(f"its {name} backend is {'disabled' if status.get('disabled') else 'not available'}")
            continue
        result = registry.validate_backend_for_call(name, function, _example(function))
        if result.success:
            return name, ""
        reasons.append(f"its {name} backend: {result.failed_param} {result.failure_reason}")
    return None, ", ".join(reasons)


def unavailable(device: torch.device) -> str | None:
    """Why the functions below cannot run on a CUDA device, or None."""
    for function in ("adaln", "apply_rope1"):
        name, reason = _backend(function)
        if name is None:
            return reason
    return None


def rms_norm_rope(
    x: torch.Tensor, weight: torch.Tensor, freqs: torch.Tensor, *, heads: int, eps: float
) -> torch.Tensor:
    """Rotary embedding of the RMS-normalized x [B, L, H * D]: [B, L, H, D] in x's dtype; see `custom_ops`."""
    normed = F.rms_norm(x, weight.shape, weight.to(x.dtype), eps).unflatten(2, (heads, -1))
    rotate = registry.get_implementation("apply_rope1", backend=_backend("apply_rope1")[0])
    return rotate(normed, freqs)


def layer_norm_modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, *, eps: float) -> torch.Tensor:
    """LayerNorm(x) * (1 + scale) + shift of x [B, L, width], in x's dtype; see `custom_ops`."""
    modulate = registry.get_implementation("adaln", backend=_backend("adaln")[0])
    return modulate(x, scale, shift, eps)

"""Sets the self-attention of a model clone."""

from collections.abc import Container

import comfy.model_patcher

from ...kernels import AUTOMATIC, sage_pv_format
from ..attention import MODES, SLA, Mode, parse_blocks
from ..errors import TurboError
from .guider import model_spec


def _is_in(layer: str, blocks: Container[int]) -> bool:
    """Whether a layer, by its name in the network, belongs to one of these main blocks. Those of VACE's control branch
    do not."""
    name, number, *_ = layer.split(".")
    return name == "blocks" and int(number) in blocks


def with_attention(
    patcher: comfy.model_patcher.ModelPatcher,
    mode: Mode,
    topk: float,
    dense_blocks: str,
    allow_untrained: bool,
    dense_steps: int = 0,
) -> comfy.model_patcher.ModelPatcher:
    """A clone of a model from TurboDiffusionLoader whose self-attention is sparse-linear ("sla" in 16 bits, "sagesla"
    in 8 bits) or dense; the blocks in `dense_blocks` (as `parse_blocks`) and the first `dense_steps` steps of each run
    are dense in every mode. The original and its other clones are not changed.

    "auto" is sparse-linear for a checkpoint with a trained proj_l, in the format that `kernels.automatic_format` gives
    for the device it runs on, and dense for others. `allow_untrained` lets layers without one run "sla" and "sagesla",
    as the sparse branch alone: those of a stock model, and VACE's control branch, which is dense otherwise. Raises
    TurboError for a mode, share, block or number of steps that this model cannot have."""
    spec = model_spec(patcher)
    if mode not in MODES:
        raise TurboError(f"mode is {mode!r}: choose one of {', '.join(MODES)}.")
    if not 0 < topk <= 1:
        raise TurboError(f"topk is {topk}: it is the share of key blocks each query attends to, above 0 and at most 1.")
    if dense_steps < 0:
        raise TurboError(f"dense_steps is {dense_steps}: it is a number of steps, 0 for none.")
    if mode in ("sla", "sagesla") and not spec.sla and not allow_untrained:
        raise TurboError(
            "This checkpoint has no trained proj_l, so sparse-linear attention would drop most of what it attends to: "
            "choose auto or dense, or set allow_untrained to try it block-sparse."
        )
    sparse = mode in ("sla", "sagesla") or (mode == "auto" and spec.sla)
    sage = sage_pv_format(patcher.load_device).name if mode == "sagesla" else ""
    pv = AUTOMATIC if mode == "auto" else sage
    dense = parse_blocks(dense_blocks, spec.layers)
    if sparse and not patcher.model.attention_layers:
        raise TurboError(
            "This kind of Wan model runs as ComfyUI runs it, and its attention cannot be sparse: choose auto or dense."
        )
    clone = patcher.clone()
    for name, layer in patcher.model.attention_layers.items():
        trained = layer.attn_op is not None
        is_sparse = sparse and (trained or allow_untrained) and not _is_in(name, dense)
        settings = SLA(topk, linear=trained, pv=pv) if is_sparse else None
        clone.add_object_patch(f"diffusion_model.{name}.sla", settings)
    clone.add_object_patch("dense_steps", dense_steps)
    return clone

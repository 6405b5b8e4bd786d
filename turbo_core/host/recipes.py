"""What another process needs to make the same model: its file, and what nodes have changed in this clone."""

from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
from comfy.patcher_extension import WrappersMP

from ..errors import TurboError
from .load import load_model
from .side_paths import SidePath

# Object patches that a recipe need not have: rank 0 alone uses them, or sends the settings with every step.
_ON_RANK_0 = ("model_sampling", "dense_steps")
_SENT = ".sla"


def recipe_of(patcher: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """The recipe of a model as plain data: `file`, the arguments of load_model; `side_paths`, of each low-rank change
    its layer, matrices and scale; `patches` as (strength of the patch, patches by key, strength of the model), as
    ModelPatcher.add_patches takes them.

    Raises TurboError, with its name, for a change by another node that cannot be sent to another process."""
    loader, file = (*(patcher.cached_patcher_init or (None, ())), ())[:2]
    if loader is not load_model:
        raise _cannot("a model of another loader")
    paths: list[tuple[Any, ...]] = []
    for name, value in patcher.object_patches.items():
        if name.endswith(".side_paths"):
            layer = name.removeprefix("diffusion_model.").removesuffix(".side_paths")
            paths += [_matrices(layer, path) for path in value]
        elif name not in _ON_RANK_0 and not name.endswith(_SENT):
            raise _cannot(f"its change of {name}")
    for kind in ("weight_wrapper_patches", "injections", "hook_patches"):
        if getattr(patcher, kind, None):
            raise _cannot(f"its {kind.replace('_', ' ')}")
    patches: list[tuple[float, dict[Any, Any], float]] = []
    for key, each in patcher.patches.items():
        for strength, patch, strength_model, offset, function in each:
            if function is not None:
                raise _cannot(f"its patch of {key}")
            patches.append((strength, {key if offset is None else (key, offset): patch}, strength_model))
    return {"file": file, "side_paths": paths, "patches": patches}


def check_call(transformer_options: Mapping[str, Any], own_wrapper: str) -> None:
    """Raises TurboError for what another node changes inside of a network call, with its name: it would happen on this
    rank only."""
    wrappers = transformer_options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {})
    for key in wrappers:
        if key != own_wrapper:
            raise _cannot(f"its wrapper {key}" if key else "its wrapper of the network")
    for kind in ("patches", "patches_replace"):
        for name, functions in transformer_options.get(kind, {}).items():
            if functions:
                raise _cannot(f"its {kind.replace('_', ' ')} {name}")
    override = transformer_options.get("optimized_attention_override")
    if override is not None:
        raise _cannot(f"the attention it sets ({getattr(override, '__qualname__', type(override).__name__)})")


def _matrices(layer: str, path: SidePath) -> tuple[Any, ...]:
    return layer, path.down.weight.detach().cpu(), path.up.weight.detach().cpu(), path.scale


def _cannot(what: str) -> TurboError:
    return TurboError(
        f"A model on several GPUs cannot have {what} of another node, which the other GPUs do not get: take that node "
        "or TurboDiffusion Parallel out."
    )

"""A rank other than ComfyUI's own process: the same models from the same files, and its part of each network call."""

import logging
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

from ..attention import SLA
from ..errors import TurboError
from ..lora import LowRank
from ..parallel.group import Backend, Group, GroupError, connect, find_store
from .load import load_model
from .side_paths import add_side_paths
from .token_ranks import TokenRanks

logger = logging.getLogger("turbodiffusion")


class Rank:
    """The models and groups of one process. Every argument and result is plain data or of ComfyUI's classes, because
    the pack's classes have another module name in the other process."""

    def __init__(self, threads: int):
        """`threads`: how many torch uses, since ranks on a CPU share its cores."""
        torch.set_num_threads(threads)
        self._files: dict[tuple[Any, ...], comfy.model_patcher.ModelPatcher] = {}
        self._models: dict[str, comfy.model_patcher.ModelPatcher] = {}
        self._groups: dict[str, Group] = {}

    def device(self) -> str:
        """The UUID of this process's GPU, or "cpu"."""
        device = comfy.model_management.get_torch_device()
        return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else device.type

    def join(self, group: str, host: str, port: int, rank: int, size: int, backend: Backend, own_host: str) -> None:
        """Joins a group that rank 0 has made at host:port."""
        self._groups[group] = connect(find_store(host, port, size), own_host, rank, size, backend)

    def load(self, name: str, recipe: Mapping[str, Any] | None, shape: tuple[int, ...], size: int) -> None:
        """Makes a model by a recipe (`recipes.recipe_of`), unless it has it, and loads its weights to the device beside
        the memory of a step over latents of this shape, divided among `size` ranks."""
        if recipe is not None:
            self._models[name] = self._make(recipe)
        patcher = self._models[name]
        memory = patcher.model.memory_required(shape) / size
        comfy.model_management.load_models_gpu([patcher], memory_required=memory)

    def _make(self, recipe: Mapping[str, Any]) -> comfy.model_patcher.ModelPatcher:
        file = tuple(recipe["file"])
        if file not in self._files:
            self._files[file] = load_model(*file)
        patcher = self._files[file].clone()
        add_side_paths(patcher, [LowRank(*change) for change in recipe["side_paths"]], 1.0)
        for strength, patches, strength_model in recipe["patches"]:
            patcher.add_patches(patches, strength, strength_model)
        return patcher

    def step(
        self,
        group: str,
        name: str,
        tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
        others: Mapping[str, Any],
        attention: Mapping[str, tuple[Any, ...] | None],
    ) -> tuple[str, str] | None:
        """Takes part in a network call of rank 0, whose arguments are `tensors`, which it sends, and `others`.
        `attention`: the SLA of each layer by name, None for a dense one.

        Returns None, or what went wrong as (kind, sentence); the kind is "group", "memory" or "error"."""
        ranks = self._groups.get(group)
        try:
            if ranks is None:
                raise GroupError("This rank is in no group.")
            model = self._models[name].model
            device = comfy.model_management.get_torch_device()
            for layer, settings in attention.items():
                model.attention_layers[layer].sla = None if settings is None else SLA(*settings)
            with torch.inference_mode():
                given = {
                    key: ranks.broadcast(torch.empty(shape, dtype=dtype, device=device))
                    for key, (shape, dtype) in tensors.items()
                }
                options = TokenRanks(ranks, len(model.diffusion_model.blocks)).options()
                model.diffusion_model(**given, **others, transformer_options=options)
        except Exception as error:
            self.leave(group)
            if isinstance(error, GroupError):
                return "group", str(error)
            if comfy.model_management.is_oom(error):
                comfy.model_management.unload_all_models()
                return "memory", f"it is out of memory ({_first_line(error)})"
            if not isinstance(error, TurboError):
                logger.exception("A step failed on another rank")
            return "error", _first_line(error)
        return None

    def leave(self, group: str) -> None:
        """Ends this rank's part in a group; a step that waits for the others ends."""
        ranks = self._groups.pop(group, None)
        if ranks is not None:
            ranks.abort()

    def unload(self, names: list[str]) -> None:
        """Takes models off the device."""
        for name in names:
            if name in self._models:
                comfy.model_management.unload_model_and_clones(self._models[name])
        comfy.model_management.soft_empty_cache()

    def forget(self, names: list[str]) -> None:
        """Drops models, and the files that no other one is made of."""
        for name in names:
            self._models.pop(name, None)
        used = {id(patcher.model) for patcher in self._models.values()}
        self._files = {file: patcher for file, patcher in self._files.items() if id(patcher.model) in used}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

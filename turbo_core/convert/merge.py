"""Changes of weights during a conversion: the difference of two other checkpoints, a LoRA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from .. import lora
from ..checkpoint.keys import PATCH_EMBEDDING
from ..checkpoint.read import read
from ..errors import TurboError
from .file_tensors import FileTensors
from .source import Source

_LISTED = 3


class Addition(Protocol):
    """A change of weights. `notes` says in sentences what it changes and what it leaves unchanged."""

    notes: list[str]

    def touches(self, name: str) -> bool:
        """Whether that tensor changes."""

    def add(self, name: str, rows: slice, values: torch.Tensor) -> None:
        """Adds to these rows, float32 [rows, width], in place."""


class Delta:
    """base + weight * (turbo - teacher) on every tensor that all three have.

    `taken` are the tensors that only the turbo model has (its `proj_l`), which come along as they are. A patch
    embedding for other input channels stays the base's own. Raises TurboError where the three do not belong
    together."""

    def __init__(self, base: Source, turbo: Source, teacher: Source, weight: float):
        self._turbo, self._teacher, self._weight = turbo, teacher, weight
        names = {source: set(source.names) for source in (base, turbo, teacher)}
        shared = names[base] & names[turbo] & names[teacher]
        own = set()
        if len({source.shape(PATCH_EMBEDDING) for source in names}) > 1:
            own = {PATCH_EMBEDDING, "patch_embedding.bias"}
        for name in base.names:
            if name in shared - own and len({source.shape(name) for source in names}) > 1:
                sizes = ", ".join(f"{list(source.shape(name))} in {source.path.name}" for source in names)
                raise TurboError(f"{name} is {sizes}: a delta needs models of one size.")
        half = [name for name in base.names if name in names[turbo] ^ names[teacher]]
        if half:
            raise TurboError(
                f"{half[0]}{_more(half)} of {base.path.name} is in only one of {turbo.path.name} and "
                f"{teacher.path.name}, so "
                "there is no difference to add; use the model that the turbo one was made from as teacher."
            )
        self._names = shared - own if weight else set()
        self.taken = [name for name in turbo.names if name not in names[base] and name not in names[teacher]]
        self.notes = [
            f"{len(self._names)} tensors of {base.path.name} changed by {weight:g} * ({turbo.path.name} - "
            f"{teacher.path.name})."
        ]
        if own:
            channels = ", ".join(f"{source.shape(PATCH_EMBEDDING)[1]} in {source.path.name}" for source in names)
            self.notes.append(f"The patch embedding is the base's own (input channels: {channels}).")
        if self.taken:
            self.notes.append(
                f"{len(self.taken)} tensors that only {turbo.path.name} has came along: {_some(self.taken)}."
            )
        alone = [name for name in base.names if name not in names[turbo]]
        if alone:
            self.notes.append(
                f"{len(alone)} tensors that only {base.path.name} has stayed as they are: {_some(alone)}."
            )

    def touches(self, name: str) -> bool:
        return name in self._names

    def add(self, name: str, rows: slice, values: torch.Tensor) -> None:
        values.add_(self._turbo.rows(name, rows).sub_(self._teacher.rows(name, rows)), alpha=self._weight)


class Lora:
    """weight + strength * scale * up @ down on every layer that a LoRA file names.

    `shapes` are those of the model's tensors. Raises CheckpointError for a damaged file, TurboError for one that
    changes no layer of the model or does not fit it."""

    def __init__(self, path: Path, strength: float, shapes: Mapping[str, tuple[int, ...]]):
        tensors, _ = read(path)
        found = lora.match(path.name, tensors, shapes)
        self._files = FileTensors(path, tensors)
        self._strength = strength
        self._changes: dict[str, list[lora.LowRank | lora.Difference]] = {}
        for change in found.low_rank:
            self._changes.setdefault(f"{change.layer}.weight", []).append(change)
        for difference in found.differences:
            self._changes.setdefault(f"{difference.layer}.{difference.kind}", []).append(difference)
        self.notes = [f"{path.name} merged into {len(found.layers)} layers at strength {strength:g}."]
        if found.unused:
            self.notes.append(f"{path.name}: {found.unused_report}.")

    def touches(self, name: str) -> bool:
        return self._strength != 0 and name in self._changes

    def add(self, name: str, rows: slice, values: torch.Tensor) -> None:
        for change in self._changes[name]:
            if isinstance(change, lora.LowRank):
                up, down = self._files.read(change.up, rows).float(), self._files.read(change.down, slice(None)).float()
                values.addmm_(up, down, alpha=self._strength * change.scale)
            else:
                value = self._files.read(change.value.reshape(-1, values.shape[1]), rows)
                values.add_(value.float(), alpha=self._strength)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""

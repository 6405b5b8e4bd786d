"""A conversion from its request to the finished file."""

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..checkpoint.identify import identify
from ..checkpoint.layout import TEXT_WIDTH
from ..checkpoint.metadata import CONFIG, METADATA_KEY, carried_along, stated_kind
from ..checkpoint.packed import KINDS
from ..checkpoint.read import read_safetensors
from ..checkpoint.shards import files_of
from ..errors import TurboError
from . import codec, output
from .container import Container
from .merge import Addition, Delta, Lora
from .source import Source, is_block_linear, sha256, size

# Takes the stage, the bytes done and the bytes in all; may raise to end the conversion.
Progress = Callable[[str, int, int], None]
_STRONGEST = 1e6
_PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to convert. With `base` and `teacher` the result is base + delta * (model - teacher), else it is the model;
    then the LoRA is added. `weights`, one of WEIGHTS, is how the blocks' linears are stored; everything else stays as
    it is."""

    model: Path
    output: Path
    weights: str = "keep"
    overwrite: bool = False
    lora: Path | None = None
    lora_strength: float = 1.0
    base: Path | None = None
    teacher: Path | None = None
    delta: float = 1.0

    @property
    def inputs(self) -> dict[str, Path]:
        files = {"model": self.model, "lora": self.lora, "base": self.base, "teacher": self.teacher}
        return {role: path for role, path in files.items() if path is not None}


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a conversion."""

    path: Path
    description: str
    size: int
    seconds: float
    notes: list[str]

    @property
    def summary(self) -> str:
        """What was written, in one line."""
        size, seconds = f"{self.size / 1e9:.2f} GB", f"{self.seconds:.0f} s"
        return f"{self.path.name}: {self.description}, {size}, in {seconds}, read back and checked."

    def __str__(self) -> str:
        return "\n".join([self.summary, *self.notes])


def convert(request: Request, progress: Progress | None = None) -> Report:
    """Writes `request.output`, complete and checked, or nothing under that name.

    Weights pass through memory some rows at a time. Raises CheckpointError for an input that cannot be used, TurboError
    for a request that cannot be carried out or a disk that is full or faulty, and whatever `progress` raises."""
    started = time.monotonic()
    _check(request)
    model = Source.open(request.model)
    main, additions = _merges(request, model)
    taken = next((addition.taken for addition in additions if isinstance(addition, Delta)), [])
    plan = [_Item(main, name, _format(main, name, request.weights, additions), additions) for name in main.names]
    plan += [_Item(model, name, _format(model, name, request.weights, []), []) for name in taken]
    infos = [info for item in plan for info in item.infos()]

    trained = model if model.spec.turbo else main  # whose few steps the result has
    trained_as = trained.spec.trained_as if trained is main else trained.spec.steps_of
    record = _record(request, trained.spec.turbo, trained_as, notes=_notes(additions))
    # The hashes are known only after the files were read; the header has the same size with any.
    planned = Container(infos, _metadata(main, record, dict.fromkeys(request.inputs, "0" * 64))).size
    output.remove_leftovers(request.output.parent)  # they may be what fills the disk
    output.check_space(request.output, planned)
    advance = _Counter(progress, total=sum(map(size, request.inputs.values())) + 2 * planned)
    hashes = {role: sha256(path, advance.during("reading")) for role, path in request.inputs.items()}
    container = Container(infos, _metadata(main, record, hashes))
    with output.replacing(request.output, request.overwrite) as file:
        parts = (part for item in plan for part in item.parts())
        checksums = container.write(file, parts, advance.during("writing"))
        path = Path(file.name)
        container.verify(path, checksums, request.output.name, advance.during("checking"))
        spec, _ = identify(request.output.name, *read_safetensors(path))
    return Report(request.output, spec.describe(), container.size, time.monotonic() - started, _notes(additions))


def _check(request: Request) -> None:
    if request.weights not in codec.WEIGHTS:
        raise TurboError(f"weights is {request.weights!r}: choose {', '.join(codec.WEIGHTS)}.")
    if (request.base is None) != (request.teacher is None):
        raise TurboError(BASE_AND_TEACHER)
    for name, value in (("lora_strength", request.lora_strength), ("delta", request.delta)):
        if not abs(value) <= _STRONGEST:  # true for NaN too
            raise TurboError(f"{name} is {value}: give a number; 1 is the usual strength.")
    for role, path in request.inputs.items():
        parts = files_of(path) if path.exists() and request.output.exists() else []
        if any(part.samefile(request.output) for part in parts if part.exists()):
            raise TurboError(f"{request.output.name} is the {role} itself; choose another output_name.")
    output.check_free(request.output, request.overwrite)


BASE_AND_TEACHER = (
    "A delta needs both base_name, the model to change, and teacher_name, what the turbo model was made from; set both "
    "or none."
)


def _merges(request: Request, model: Source) -> tuple[Source, list[Addition]]:
    """The checkpoint whose tensors are written, and what is added to them."""
    main = model
    additions: list[Addition] = []
    if request.base is not None and request.teacher is not None:
        main = Source.open(request.base)
        teacher = Source.open(request.teacher)
        for source in (main, model, teacher):
            source.check_open()
        additions.append(Delta(main, model, teacher, request.delta))
    if request.lora is not None:
        main.check_open()
        shapes = {name: main.shape(name) for name in main.names}
        additions.append(Lora(request.lora, request.lora_strength, shapes))
    return main, additions


@dataclasses.dataclass(frozen=True)
class _Item:
    """A tensor of the new file. A `format` of None copies it, scales and all."""

    source: Source
    name: str
    format: codec.Format | None
    additions: list[Addition]

    def infos(self) -> list[codec.TensorInfo]:
        if self.format is not None:
            return codec.stored_tensors(self.format, self.name, self.source.shape(self.name))
        tensors = ((name, self.source.tensors[name]) for name in self.source.stored(self.name))
        return [codec.TensorInfo(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors]

    def parts(self) -> Iterator[tuple[str, torch.Tensor]]:
        if self.format is not None:
            yield from codec.encode(self.format, self.name, self.source.shape(self.name), self._rows)
            return
        for name in self.source.stored(self.name):
            shape = codec.as_matrix(self.source.tensors[name]).shape
            for rows in codec.slabs(tuple(shape)):
                yield name, self.source.part(name, rows)

    def _rows(self, rows: slice) -> torch.Tensor:
        values = self.source.rows(self.name, rows)
        for addition in self.additions:
            if addition.touches(self.name):
                addition.add(self.name, rows, values)
        limit = torch.finfo(self.format if isinstance(self.format, torch.dtype) else torch.float32).max
        if self.additions and not (values.abs() <= limit).all():
            raise TurboError(
                f"{self.name} would hold NaN or numbers too large for its type with what is merged; choose a smaller "
                "strength, or "
                "download the LoRA or the models of the delta again."
            )
        return values


def _format(source: Source, name: str, weights: str, additions: list[Addition]) -> codec.Format | None:
    """How a tensor is stored in the new file; None to copy it as it is."""
    stored = source.format(name)
    wanted = stored
    if weights != "keep" and is_block_linear(name, source.shape(name)):
        wanted = torch.bfloat16 if weights == "bf16" else weights
    touched = any(addition.touches(name) for addition in additions)
    if stored in KINDS and wanted == stored and weights != "keep":
        wanted = torch.bfloat16  # no 4-bit weight is left beside others
    if wanted in KINDS and touched:
        raise TurboError(
            f"{source.path.name} has 4-bit weights, in which what is merged would be lost to rounding: set weights "
            "to bf16, "
            "fp8_e4m3fn, int8_rowwise or int8_block."
        )
    return wanted if touched or wanted != stored else None


def _notes(additions: list[Addition]) -> list[str]:
    return [note for addition in additions for note in addition.notes]


def _record(request: Request, turbo: bool, trained_as: str, notes: list[str]) -> dict:
    """The record of a conversion in the metadata, without the hashes. `turbo` false: the file is a stock Wan model."""
    record = {
        "version": _version(),
        "turbo": turbo,
        "weights": request.weights,
        "sources": {role: {"name": path.name, "size": size(path)} for role, path in request.inputs.items()},
    }
    if request.lora is not None:
        record["lora_strength"] = request.lora_strength
    if request.base is not None:
        record["delta"] = request.delta
    if turbo and trained_as:
        record["trained_as"] = trained_as
    return record | ({"notes": notes} if notes else {})


def _version() -> str:
    """The version of this pack."""
    return "".join(re.findall(r'(?m)^version = "(.+)"', _PYPROJECT.read_text(encoding="utf-8"))[:1])


def _metadata(main: Source, record: dict, hashes: dict[str, str]) -> dict[str, str]:
    sources = {role: source | {"sha256": hashes[role]} for role, source in record["sources"].items()}
    metadata = carried_along(main.metadata) | {METADATA_KEY: json.dumps(record | {"sources": sources})}
    # What ComfyUI does not read from the tensors.
    stated = {} if main.spec.variant else stated_kind(main.metadata)
    if main.spec.text_width != TEXT_WIDTH:
        stated["text_dim"] = main.spec.text_width
    if stated:
        metadata[CONFIG] = json.dumps({"transformer": stated})
    return metadata


class _Counter:
    """Counts bytes over all stages for a `Progress`."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def during(self, stage: str) -> Callable[[int], None]:
        def advance(count: int) -> None:
            self._done += count
            if self._progress is not None:
                self._progress(stage, self._done, self._total)

        return advance

"""The pickle in an archive of `torch.save`, interpreted: only the operations that describe dictionaries of tensors and
plain values are known. So nothing in a file is imported, called, or allocated beyond the description itself, whose
length is limited."""

import dataclasses
import io
import math
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import torch

from ..errors import CheckpointError

OPERATIONS_LIMIT = 1_000_000  # of the pickle, about 31 a tensor
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_UNTYPED = ("torch UntypedStorage", "torch.storage UntypedStorage")
# Operations whose argument is pushed on the stack as it is
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING")
_MOST_AXES, _LONGEST = 64, 1 << 62
_MALFORMED = (ValueError, IndexError, KeyError, TypeError, struct.error)
_WITHOUT_VALUES = ("torch._utils _rebuild_sparse_tensor", "torch._utils _rebuild_meta_tensor_no_storage")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file: `offset` is that of its first element in bytes from the beginning of the file, `stride` in
    elements."""

    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """A file of an archive: its place in bytes from the beginning of the archive, and its CRC-32, 0 if none was
    recorded."""

    name: str
    start: int
    size: int
    crc: int


def extent(size: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last one of a tensor, both included."""
    return 0 if 0 in size else 1 + sum((length - 1) * step for length, step in zip(size, stride, strict=True))


def interpret(path: Path, pickled: bytes, storages: dict[str, Record]) -> object:
    """What a pickle describes: dictionaries, lists, plain values, and a `Stored` for each tensor. `storages`: the
    records that hold the bytes of storages, by key; `path` is for messages.

    Raises CheckpointError for a damaged pickle, for any other Python object, and for a tensor that is sparse, has no
    values, or has more elements than its storage."""
    try:
        return _Interpreter(path, storages).run(pickled)
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise CheckpointError(
            f"{path.name} is damaged ({str(error) or type(error).__name__}); download it again."
        ) from error


_MARK = object()  # on the stack, the beginning of a tuple or of what is added to a list or dictionary


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle imports; nothing is imported here."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """`dtype` None: untyped bytes, whose dtype the tensor that uses them has."""

    record: Record
    dtype: torch.dtype | None


class _Interpreter:
    """A pickle machine with the operations of `torch.save`. Its values are plain, `_Global`, `_Storage` or `Stored`."""

    def __init__(self, path: Path, storages: dict[str, Record]):
        self._path, self._storages = path, storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, pickled: bytes) -> object:
        """The value that a pickle describes. Raises CheckpointError, and for a damaged pickle what `_MALFORMED`
        lists."""
        stack, push = self._stack, self._stack.append
        operations: dict[str, Callable[[Any], object]] = {
            "PROTO": lambda version: None,
            "MARK": lambda _: push(_MARK),
            "NONE": push,
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_TUPLE": lambda _: push(()),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_DICT": lambda _: push({}),
            "TUPLE": lambda _: push(tuple(self._since_mark())),
            "TUPLE1": lambda _: push(tuple(self._pop(1))),
            "TUPLE2": lambda _: push(tuple(self._pop(2))),
            "TUPLE3": lambda _: push(tuple(self._pop(3))),
            "APPEND": lambda _: self._append(self._pop(1)),
            "APPENDS": lambda _: self._append(self._since_mark()),
            "SETITEM": lambda _: self._set_items(self._pop(2)),
            "SETITEMS": lambda _: self._set_items(self._since_mark()),
            # Attributes of a dictionary, such as a state dict's `_metadata`, are not needed.
            "BUILD": lambda _: self._pop(1),
            "GLOBAL": lambda name: push(self._named(name)),
            "REDUCE": lambda _: push(self._call(*self._pop(2))),
            "BINPERSID": lambda _: push(self._storage(*self._pop(1))),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), lambda place: self._memo.update({place: stack[-1]})),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda place: push(self._memo[place])),
            **dict.fromkeys(_VALUES, push),
        }
        for count, (operation, argument, _) in enumerate(pickletools.genops(io.BytesIO(pickled))):
            if count > OPERATIONS_LIMIT:
                raise CheckpointError(
                    f"{self._path.name} is not a model checkpoint: its description has more than "
                    f"{OPERATIONS_LIMIT:,} operations; "
                    "get the original file."
                )
            if operation.name == "STOP":
                break
            if operation.name not in operations:
                self._refuse()
            operations[operation.name](argument)
        (result,) = stack
        return result

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count or any(value is _MARK for value in self._stack[-count:]):
            raise ValueError("its description takes values that are not there")
        values = self._stack[-count:]
        del self._stack[-count:]
        return values

    def _since_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _append(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise TypeError("its description appends to something that is not a list")
        self._stack[-1].extend(values)

    def _set_items(self, values: list[Any]) -> None:
        if type(self._stack[-1]) is not dict:
            raise TypeError("its description adds names to something that is not a dictionary")
        keys = values[::2]
        if not all(isinstance(key, (str, int)) for key in keys):  # the hash of a deep tuple recurses without a limit
            raise TypeError("its description has names that are neither text nor numbers")
        self._stack[-1].update(zip(keys, values[1::2], strict=True))

    def _named(self, name: str) -> _Global:
        if name in _WITHOUT_VALUES:
            raise CheckpointError(
                f"{self._path.name} is not a model checkpoint: a tensor in it is sparse or without values; get the "
                "original file."
            )
        return _Global(name)

    def _call(self, function: object, arguments: object) -> object:
        """The result of a call of one of the few functions that `torch.save` writes calls of."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            self._refuse()
        match function.name, arguments:
            case "collections OrderedDict", ():
                return {}
            case "torch._utils _rebuild_parameter", (Stored() as tensor, *_):
                return tensor
            case "torch._utils _rebuild_tensor_v2", (_Storage() as storage, offset, size, stride, *_) if storage.dtype:
                return self._tensor(storage.record, storage.dtype, offset, size, stride)
            case "torch._utils _rebuild_tensor_v3", (
                _Storage() as storage,
                offset,
                size,
                stride,
                _,
                _,
                _Global() as named,
                *_,
            ):
                dtype = getattr(torch, named.name.removeprefix("torch "), None)
                if isinstance(dtype, torch.dtype):
                    return self._tensor(storage.record, dtype, offset, size, stride)
        self._refuse()

    def _tensor(self, record: Record, dtype: torch.dtype, offset: object, size: object, stride: object) -> Stored:
        start = (offset,)
        if not (_are_lengths(size) and _are_lengths(stride) and _are_lengths(start)) or len(size) != len(stride):
            raise ValueError("a tensor in it has no valid shape")
        first, room = start[0] * dtype.itemsize, record.size // dtype.itemsize
        if extent(size, stride) > room - start[0] or math.prod(size) > room:
            raise ValueError("a tensor in it is larger than its storage")
        return Stored(dtype, record.start + first, size, stride)

    def _storage(self, identifier: object) -> _Storage:
        match identifier:
            case ("storage", _Global(name), str() as key, str(), int() as count) if count >= 0:
                dtype = None if name in _UNTYPED else _STORAGES.get(name.removeprefix("torch "))
                if dtype is None and name not in _UNTYPED:
                    self._refuse()
                record = self._storages[key]
                if count * (dtype.itemsize if dtype else 1) > record.size:
                    raise ValueError(f"data/{key[:20]} is smaller than described")
                return _Storage(record, dtype)
        raise ValueError("a storage in it is not described as torch does")

    def _refuse(self) -> NoReturn:
        raise CheckpointError(
            f"{self._path.name} holds Python objects besides tensors and was not loaded (nothing in it was "
            "executed); use a file from a source you trust, best a .safetensors one."
        )


def _are_lengths(values: object) -> TypeGuard[tuple[int, ...]]:
    return (
        isinstance(values, tuple)
        and len(values) <= _MOST_AXES
        and all(type(v) is int and 0 <= v <= _LONGEST for v in values)
    )

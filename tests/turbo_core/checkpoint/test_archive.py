"""A `.pth` file costs what its tensors cost: nothing in it is unpickled, inflated or allocated before it is checked."""

import pickle
import struct
import zipfile

import pytest
import torch
from td_pack.tests.support import checkpoints, hostile
from td_pack.turbo_core.checkpoint import archive, tensor_pickle
from td_pack.turbo_core.checkpoint.read import read_pth
from td_pack.turbo_core.errors import CheckpointError


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def storage(kind: str = "FloatStorage", elements: int = 4, key: str = "0") -> bytes:
    """A pickled reference to a storage."""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(elements) + b"tQ"


def tensor(size=(4,), stride=(1,), offset: int = 0, of: bytes | None = None) -> bytes:
    """A pickled tensor as torch.save writes it."""
    shape = b"".join(b"(" + b"".join(map(number, lengths)) + b"t" for lengths in (size, stride))
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (of or storage()) + number(offset) + shape + hooks + b"tR"


def model(value: bytes, name: bytes | None = None) -> bytes:
    """A pickled dictionary of one entry."""
    return b"\x80\x02}" + (name or text("a")) + value + b"s."


DATA = {"data/0": struct.pack("<4f", 1, 2, 3, 4)}
GIANT = 20 << 30
SMALLER = "larger than its storage"
DEEP = b"(" * 400_000 + b"t" * 400_000
HOSTILE = {
    "bytearray": (b"\x80\x02cbuiltins\nbytearray\n" + number(GIANT) + b"\x85R.", "Python objects"),
    "place in the memo": (model(tensor())[:-1] + b"r\xff\xff\xff\x7f.", None),
    "copies of a dictionary": (b"\x80\x02ccollections\nOrderedDict\n(}tR.", "Python objects"),
    "too long": (model(text("x" * (archive.PICKLE_LIMIT + 1))), "at most 17 MB are read"),
    "too many operations": (
        model(b"(" + b"N" * (tensor_pickle.OPERATIONS_LIMIT + 1) + b"t"),
        "more than 1,000,000 operations",
    ),
    "deep name": (model(tensor(), DEEP), "names that are neither text nor numbers"),
    "giant storage": (model(tensor(of=storage(elements=GIANT))), "data/0 is smaller than described"),
    "no such storage": (model(tensor(of=storage(key="1"))), "is damaged"),
    "giant of one value": (model(tensor((GIANT,), (0,))), SMALLER),
    "giant of many axes": (model(tensor((1 << 40,) * 3, (0,) * 3)), SMALLER),
    "beyond the end": (model(tensor((4,), (1,), offset=1)), SMALLER),
    "wide steps": (model(tensor((2,), (4,))), SMALLER),
    "before the beginning": (model(tensor((2,), (-1,), offset=1)), "no valid shape"),
    "negative size": (model(tensor((-1,), (1,))), "no valid shape"),
    "another kind of storage": (model(tensor(of=storage("CudaStorage"))), "Python objects"),
    "dtype for a storage": (model(tensor(of=storage("float32"))), "Python objects"),
    "takes what is not there": (b"\x80\x02R.", "values that are not there"),
    "two results": (b"\x80\x02NN.", "is damaged"),
    "no end": (b"\x80\x02", r"is damaged \("),
    "half a number": (b"\x80\x02J\x01", r"is damaged \("),
    "an append to nothing": (b"\x80\x02a.", r"is damaged \("),
}


@pytest.mark.parametrize("pickled, said", HOSTILE.values(), ids=HOSTILE)
def test_a_description_that_asks_for_more_than_the_file_holds(pickled, said, tmp_path):
    path = hostile.write_archive(tmp_path / "m.pth", pickled, DATA)
    with hostile.limits(megabytes=300):
        if said is None:
            assert read_pth(path)["a"].tolist() == [1, 2, 3, 4]
            return
        with pytest.raises(CheckpointError, match=said) as error:
            read_pth(path)
    assert str(error.value).startswith("m.pth ") and str(error.value).endswith(".")


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "byteorder"])
def test_a_compressed_record_is_refused_before_it_is_inflated(name, tmp_path):
    path, zeros = tmp_path / "m.pth", bytes(100 << 20)
    records = {"data.pkl": model(tensor()), **DATA, "byteorder": b"little", name: zeros}
    hostile.write_archive(path, records.pop("data.pkl"), records, deflated=True)
    del zeros, records
    with hostile.limits(megabytes=50), pytest.raises(CheckpointError, match="m.pth is a compressed zip file"):
        read_pth(path)


def test_two_records_of_one_name_are_refused(tmp_path):
    path = hostile.write_archive(tmp_path / "m.pth", model(tensor()), DATA)
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning):
        file.writestr("archive/data/0", bytes(16))
    with pytest.raises(CheckpointError, match="two of its records have one name"):
        read_pth(path)


def test_a_directory_that_points_beyond_the_file_is_refused(tmp_path):
    path = hostile.write_archive(tmp_path / "m.pth", model(tensor()), DATA)
    content = path.read_bytes()
    size = struct.pack("<II", 16, 16)
    at = content.rindex(size)
    path.write_bytes(content[:at] + struct.pack("<II", 1 << 30, 1 << 30) + content[at + 8 :])
    with pytest.raises(CheckpointError, match="record archive/data/0 is not where the directory says"):
        read_pth(path)


def test_the_other_byte_order_is_refused(tmp_path):
    path = hostile.write_archive(tmp_path / "m.pth", model(tensor()), DATA | {"byteorder": b"big"})
    with pytest.raises(CheckpointError, match="big-endian"):
        read_pth(path)


def test_plain_values_come_back(tmp_path):
    content = {"lists": [1, 2.5, [None], [True, "x", []]], "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 1 << 40))}
    torch.save(content, tmp_path / "m.pth")
    assert archive.read_archive(tmp_path / "m.pth") == content


DTYPES = [
    *(getattr(torch, name) for name in ("float8_e4m3fn", "uint16", "bool", "complex64")),
    *tensor_pickle._STORAGES.values(),
]


@pytest.mark.parametrize("crc", [True, False])
def test_what_torch_saves_comes_back(crc, tmp_path):
    """All types, views that share a storage, an offset, transposed, empty and scalar tensors, attributes of a state
    dict."""
    base = torch.arange(24).reshape(4, 6)
    tensors = {str(dtype): base.to(dtype) for dtype in DTYPES}
    tensors |= {"view": base[1:3], "transposed": base.T, "steps": base[:, ::2], "scalar": base[2, 3], "none": base[:0]}
    tensors |= {"parameter": torch.nn.Parameter(torch.ones(2, 2)), **torch.nn.Linear(2, 3).state_dict()}
    module = torch.nn.Linear(2, 3).state_dict()  # has `_metadata`
    for saved in (tensors, module):
        found = read_pth(checkpoints.write_pth(tmp_path / "m.pth", saved, checksums=crc))
        assert list(found) == list(saved)
        for name, value in saved.items():
            assert found[name].dtype == value.dtype and found[name].stride() == value.stride()
            got, want = (each.contiguous().reshape(-1).view(torch.uint8) for each in (found[name], value))
            assert torch.equal(got, want)

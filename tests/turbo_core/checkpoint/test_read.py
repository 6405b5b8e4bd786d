"""Files that are no checkpoint say so; files that are one are mapped, not copied, and never executed."""

import pickle
from pathlib import Path

import pytest
import safetensors
import torch
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.checkpoint.read import check_readable, check_tensors, read_pth, read_safetensors
from td_pack.turbo_core.errors import CheckpointError

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


class Payload:
    """Unpickling it creates a file: what a malicious checkpoint could do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def message(call, *args):
    """The text of the error, which must name the file and be one paragraph."""
    with pytest.raises(CheckpointError) as error:
        call(*args)
    text = str(error.value)
    assert text.startswith(args[0].name) and text.endswith(".") and "\n" not in text
    return text


@pytest.mark.parametrize(
    "content",
    [TENSORS, {"state_dict": TENSORS}, {"state_dict": TENSORS, "epoch": 3}, {"model": TENSORS}],
    ids=["bare", "state_dict", "state_dict and more", "only one dictionary"],
)
def test_tensors_come_back(tmp_path, content):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    check_readable(path)
    tensors = read_pth(path)
    assert list(tensors) == list(TENSORS)
    assert all(torch.equal(tensors[name], want) and tensors[name].dtype == want.dtype for name, want in TENSORS.items())


SAFETENSORS = safetensors.torch.save(TENSORS)
NOT_A_CHECKPOINT = [
    ("m.pth", b"", "is empty; download it again"),
    ("m.safetensors", b"", "is empty; download it again"),
    ("m.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
    ("m.safetensors", b"<!DOCTYPE html>\n<html></html>", "web page"),
    ("m.pth", b"\n  <html><head>", "web page"),
    ("m.pth", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    ("m.pth", None, "does not exist; place it in ComfyUI's models/diffusion_models"),
    (".", None, "does not exist"),
    ("m.safetensors", b"PK\x03\x04", "rename it to end in .pth"),
    ("m.SFT", b"PK\x03\x04", "rename it to end in .pth"),
    ("m.pth", SAFETENSORS, "rename it to end in .safetensors"),
    ("m.ckpt", SAFETENSORS, "rename it to end in .safetensors"),
]


@pytest.mark.parametrize("name, content, said", NOT_A_CHECKPOINT)
def test_a_file_that_is_not_a_checkpoint_says_what_it_is(tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert said in message(check_readable, path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_cut_pth(tmp_path, kept):
    path = checkpoints.write_pth(tmp_path / "m.pth", TENSORS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    check_readable(path)
    assert "is cut short: its end is missing; download it again" in message(read_pth, path)


HEADER = 8 + int.from_bytes(SAFETENSORS[:8], "little")
CUT = "is cut short: its end is missing; download it again"
DAMAGED = {
    "cut in the header": (SAFETENSORS[: HEADER - 5], CUT),
    "cut before the data": (SAFETENSORS[:HEADER], CUT),
    "cut in the data": (SAFETENSORS[:-1], CUT),
    "noise": (bytes(range(100, 200)), "is not a readable safetensors file ("),
    "a shape beyond int64": (
        (74).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9223372036854775808,0],"data_offsets":[0,0]}}',
        "is not a readable safetensors file (",
    ),
}


@pytest.mark.parametrize("content, said", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_safetensors_says_how(tmp_path, content, said):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    check_readable(path)
    assert said in message(read_safetensors, path) and "download it again" in message(read_safetensors, path)


@pytest.mark.parametrize("form", ["zip", "zip beside tensors", "legacy", "plain pickle"])
def test_code_in_a_file_is_not_executed(tmp_path, form):
    path, made = tmp_path / "m.pth", tmp_path / "executed"
    content = {**TENSORS, "x": Payload(made)} if form == "zip beside tensors" else Payload(made)
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    check_readable(path)
    text = message(read_pth, path)
    assert not made.exists()
    assert ("nothing in it was executed" if form.startswith("zip") else "is not a PyTorch zip checkpoint") in text


@pytest.mark.parametrize(
    "content, said",
    [
        ({}, "holds no named tensors"),
        ([torch.ones(1)], "holds no named tensors"),
        (torch.ones(1), "holds no named tensors"),
        ({"state_dict": {}}, "holds no named tensors"),
        ({0: torch.ones(1)}, "0 is not a tensor"),
        ({**TENSORS, "epoch": 3}, "'epoch' is not a tensor; a training state"),
        (
            {"model": TENSORS, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "step": 7},
            "'model' is not a tensor (and 2 more); a training state",
        ),
    ],
    ids=["empty", "list", "tensor", "empty state_dict", "number as name", "epoch", "training state"],
)
def test_anything_but_named_tensors_is_refused(tmp_path, content, said):
    path = tmp_path / "m.pth"
    torch.save(content, path)
    assert said in message(read_pth, path)
    assert said in message(
        check_tensors, path, content.get("state_dict", content) if isinstance(content, dict) else content
    )


def test_a_damaged_archive_says_so(tmp_path):
    path = checkpoints.write_pth(tmp_path / "m.pth", TENSORS)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"data.pkl", b"nope.pkl"))
    assert "is damaged (" in message(read_pth, path)


@pytest.mark.parametrize("value", [torch.ones(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_a_tensor_without_its_values_is_refused(tmp_path, value):
    path = tmp_path / "m.pth"
    torch.save({**TENSORS, "c": value}, path)
    assert "is sparse or without values" in message(read_pth, path)


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="needs Linux' /proc, a file that cannot be read")
def test_a_file_that_cannot_be_read_says_so(tmp_path):
    path = tmp_path / "m.safetensors"
    path.symlink_to("/proc/self/mem")
    assert "cannot be read (Input/output error)" in message(check_readable, path)


def anonymous_megabytes():
    """Memory of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def test_tensors_are_mapped_from_the_file(tmp_path):
    path = tmp_path / "m.pth"
    torch.save({"w": torch.full((200 << 20,), 3, dtype=torch.uint8)}, path)
    before = anonymous_megabytes()
    tensors = read_pth(path)
    assert tensors["w"][:: 1 << 10].sum() == 3 * (200 << 10)  # every page was read
    assert anonymous_megabytes() - before < 20  # of 200; torch's own allocations are far below
    del tensors
    path.unlink()

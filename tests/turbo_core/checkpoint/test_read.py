"""Files that are no checkpoint say so; files that are one are mapped, not copied, and never executed."""

import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.checkpoint.read import check_readable, check_tensors, damaged, read_pth, read_safetensors
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


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("m.pth", b"", "is empty; download it again"),
        ("m.safetensors", b"", "is empty; download it again"),
        ("m.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        ("m.safetensors", b"<!DOCTYPE html>\n<html></html>", "web page"),
        ("m.pth", b"\n  <html><head>", "web page"),
        ("m.pth", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
    ],
)
def test_what_a_failed_download_leaves(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    assert said in message(check_readable, path)


def test_an_absent_file_says_where_it_belongs(tmp_path):
    assert "models/diffusion_models" in message(check_readable, tmp_path / "m.pth")
    assert "does not exist" in message(check_readable, tmp_path)


@pytest.mark.parametrize("name", ["m.safetensors", "m.SFT"])
def test_a_pth_named_safetensors(tmp_path, name):
    assert "rename it to end in .pth" in message(check_readable, checkpoints.write_pth(tmp_path / name, TENSORS))


@pytest.mark.parametrize("name", ["m.pth", "m.ckpt"])
def test_a_safetensors_named_pth(tmp_path, name):
    path = checkpoints.write_safetensors(tmp_path / name, TENSORS)
    assert "rename it to end in .safetensors" in message(check_readable, path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_cut_pth(tmp_path, kept):
    path = checkpoints.write_pth(tmp_path / "m.pth", TENSORS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    check_readable(path)
    assert "is cut short: its end is missing; download it again" in message(read_pth, path)


@pytest.mark.parametrize("cut", ["in the header", "before the data", "in the data"])
def test_a_cut_safetensors(tmp_path, cut):
    path = checkpoints.write_safetensors(tmp_path / "m.safetensors", TENSORS)
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    kept = {"in the header": header - 5, "before the data": header, "in the data": len(content) - 1}[cut]
    path.write_bytes(content[:kept])
    check_readable(path)
    with pytest.raises(safetensors.SafetensorError) as error:
        safetensors.safe_open(path, "pt")
    assert "is cut short: its end is missing; download it again" in str(damaged(path, error.value))


def test_a_safetensors_of_noise_tells_the_readers_cause(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(bytes(range(100, 200)))
    with pytest.raises(safetensors.SafetensorError) as error:
        safetensors.safe_open(path, "pt")
    text = str(damaged(path, error.value))
    assert text.startswith("m.safetensors is not a readable safetensors file (") and "download it again" in text


def test_a_legacy_pth_is_refused_unread(tmp_path):
    path = tmp_path / "m.pth"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=False)
    assert "is not a PyTorch zip checkpoint" in message(read_pth, path)


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
    assert ("nothing in it was executed" in text) == form.startswith("zip")


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


@pytest.mark.parametrize("pickled", [b"\x80\x02", b"\x80\x02J\x01", b"\x80\x02a."])
def test_a_damaged_pickle_in_a_sound_archive_says_so(tmp_path, pickled):
    source = checkpoints.write_pth(tmp_path / "source.pth", TENSORS)
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    assert "is damaged (" in message(read_pth, path)


@pytest.mark.parametrize("value", [torch.ones(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_a_tensor_without_its_values_is_refused(tmp_path, value):
    path = tmp_path / "m.pth"
    torch.save({**TENSORS, "c": value}, path)
    assert "is sparse or without values" in message(read_pth, path)


def test_a_shape_beyond_all_memory_is_a_damaged_file(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[9223372036854775808,0],"data_offsets":[0,0]}}'
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    assert "is not a readable safetensors file" in message(read_safetensors, path)


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

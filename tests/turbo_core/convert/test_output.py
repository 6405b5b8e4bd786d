"""A new file appears whole, under a name inside its folder, or not at all."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from td_pack.tests.support import checkpoints
from td_pack.tests.support.videos import largest_file
from td_pack.turbo_core.checkpoint.read import read_safetensors
from td_pack.turbo_core.convert import output
from td_pack.turbo_core.convert.codec import TensorInfo
from td_pack.turbo_core.convert.container import Container
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.errors import TurboError

TESTS = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def state_dict():
    return checkpoints.upstream_state_dict(3, layers=1)


@pytest.fixture
def source(state_dict, tmp_path):
    return checkpoints.write_pth(tmp_path / "source.pth", state_dict)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "name,expected",
    [
        ("model", "model.safetensors"),
        ("model.safetensors", "model.safetensors"),
        (" TurboWan2.2-I2V ", "TurboWan2.2-I2V.safetensors"),
        ("turbo/model", "turbo/model.safetensors"),
        ("turbo\\model", "turbo/model.safetensors"),
        ("..model", "..model.safetensors"),
        ("\u30e2\u30c7\u30eb \u00e9", "\u30e2\u30c7\u30eb \u00e9.safetensors"),
        ("conan/auxiliary", "conan/auxiliary.safetensors"),
    ],
)
def test_a_name_gets_its_suffix(name, expected):
    assert output.check_name(name) == expected


@pytest.mark.parametrize(
    "name,message",
    [
        ("", "give the new file a name"),
        ("folder/", "give the new file a name"),
        ("..", "inside the diffusion_models folder"),
        ("../model", "inside the diffusion_models folder"),
        ("a/../../model", "inside the diffusion_models folder"),
        ("..\\model", "inside the diffusion_models folder"),
        ("/etc/model", "inside the diffusion_models folder"),
        ("\\\\server\\share\\model", "inside the diffusion_models folder"),
        ("\\model", "inside the diffusion_models folder"),
        ("C:\\model", "inside the diffusion_models folder"),
        ("c:model", "inside the diffusion_models folder"),
        ("mod\0el", "no file name on every system"),
        ("model:stream", "no file name on every system"),
        ("m" * 300, "no file name on every system"),
        ("\u65e5" * 100, "no file name on every system"),  # 300 bytes
        ("m" * 201 + "/model", "no file name on every system"),
        ("m/" * 600 + "model", "no file name on every system"),
        ("\ud800", "no file name on every system"),  # half a character, as JSON may hold
        ("model\u202esrotasnet", "no file name on every system"),  # would be listed backwards
        ("mo\ndel", "no file name on every system"),
        ("CON", "no file name on every system"),
        ("nul/model", "no file name on every system"),
        ("com1.turbo", "no file name on every system"),
        ("model-00001-of-00002", "how one of several files of a model is named"),
        ("model-00001-of-00002.safetensors", "how one of several files of a model is named"),
        ("model.pth", "end its name in .safetensors"),
        ("model.gguf", "end its name in .safetensors"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(name, message):
    with pytest.raises(TurboError, match=message):
        output.check_name(name)


def test_a_file_is_replaced_only_when_told(source, tmp_path):
    path = tmp_path / "new.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(TurboError, match="new.safetensors exists already; set overwrite to replace it"):
        convert(Request(source, path))
    assert path.read_bytes() == b"precious"
    convert(Request(source, path, overwrite=True))
    assert read_safetensors(path) and names(tmp_path) == ["new.safetensors", "source.pth"]


def test_what_is_no_file_and_no_folder_is_named_before_anything_is_read(source, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    seen = []
    for path, message in (
        (tmp_path / "folder.safetensors", "folder.safetensors is a folder; choose another output_name"),
        (source / "new.safetensors", "source.pth is a file, so new.safetensors cannot go into it"),
    ):
        with pytest.raises(TurboError, match=message):
            convert(Request(source, path, overwrite=True), lambda *_: seen.append(1))
    assert not seen


def test_a_file_that_comes_to_be_meanwhile_is_kept(source, tmp_path):
    path = tmp_path / "new.safetensors"
    with pytest.raises(TurboError, match="exists already"):
        convert(Request(source, path), lambda *_: path.write_bytes(b"precious"))
    assert path.read_bytes() == b"precious" and names(tmp_path) == ["new.safetensors", "source.pth"]


def test_an_input_is_never_the_output(source, tmp_path):
    path = tmp_path / "new.safetensors"
    convert(Request(source, path))
    with pytest.raises(TurboError, match="new.safetensors is the model itself; choose another output_name"):
        convert(Request(path, path, overwrite=True))


class Interrupt(BaseException):
    """As ComfyUI's interrupt is."""


@pytest.mark.parametrize("stage", ["reading", "writing", "checking"])
@pytest.mark.parametrize("error", [Interrupt, KeyboardInterrupt, ValueError])
def test_an_interrupted_run_leaves_nothing(stage, error, source, tmp_path):
    def interrupt(now, done, total):
        if now == stage:
            raise error

    with pytest.raises(error):
        convert(Request(source, tmp_path / "sub" / "new.safetensors"), interrupt)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [source]


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import conftest
from pathlib import Path
from td_pack.turbo_core.convert.convert import Request, convert

def progress(stage, done, total):
    if stage == sys.argv[4]:
        print("now", flush=True)
        time.sleep(60)

convert(Request(Path(sys.argv[2]), Path(sys.argv[3])), progress)
"""


def test_a_killed_run_leaves_no_file_of_that_name_and_the_next_one_clears_up(source, tmp_path):
    path = tmp_path / "new.safetensors"
    other = tmp_path / "other.safetensors.0123abcd.partial"
    other.touch()  # of a killed run for another name
    command = [sys.executable, "-c", KILLED, TESTS, str(source), str(path), "writing"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        try:
            assert run.stdout.readline() == b"now\n"
            with output.replacing(path, True):  # another conversion meanwhile leaves the file of this one alone
                assert len(list(tmp_path.glob("new.*.partial"))) == 2
            path.unlink()
        finally:
            run.send_signal(signal.SIGKILL)
    leftover = [name for name in names(tmp_path) if name.startswith("new")]
    assert len(leftover) == 1 and leftover[0].endswith(".partial")
    convert(Request(source, path))
    assert names(tmp_path) == ["new.safetensors", "source.pth"]


def test_a_disk_that_becomes_full_is_named_and_leaves_nothing(source, tmp_path):
    """A limit on the size of files fails a write as a full disk does."""
    message = "The disk became full while writing new.safetensors; make room"
    with largest_file(1 << 20), pytest.raises(TurboError, match=message):
        convert(Request(source, tmp_path / "new.safetensors"))
    assert names(tmp_path) == ["source.pth"]


def test_a_disk_too_small_is_named_before_anything_is_read(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    stages = []
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "old.safetensors.0123abcd.partial").touch()  # of a killed run: it may be what fills the disk
    with pytest.raises(TurboError, match=r"new.safetensors needs 0.00 GB and the disk of .* has 0.00 GB free"):
        convert(Request(source, tmp_path / "deep" / "new.safetensors"), lambda *now: stages.append(now))
    assert not stages and names(tmp_path) == ["deep", "source.pth"] and not names(tmp_path / "deep")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()  # which came to be after `check_free`
    with pytest.raises(TurboError, match=r"new.safetensors could not be written \(.+\); check the folder"):
        with output.replacing(tmp_path / "file" / "new.safetensors", False):
            raise AssertionError("it was opened")


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_bit_that_flips_on_the_disk_is_found(source, tmp_path):
    flipped = []

    def progress(stage, done, total):
        if stage == "checking" and not flipped:
            (partial,) = tmp_path.glob("*.partial")
            flip(partial, partial.stat().st_size - 3)
            flipped.append(partial)

    with pytest.raises(TurboError, match="new.safetensors was not stored as it was written: .* differs when read back"):
        convert(Request(source, tmp_path / "new.safetensors"), progress)
    assert flipped and names(tmp_path) == ["source.pth"]


FAULTS = {
    "header": (lambda path, size: flip(path, 12), "the header"),
    "first tensor": (lambda path, size: flip(path, size - 16 - 12), "scale"),
    "last tensor": (lambda path, size: flip(path, size - 1), "codes"),
    "cut": (lambda path, size: path.write_bytes(path.read_bytes()[:-1]), "the size"),
    "longer": (lambda path, size: path.write_bytes(path.read_bytes() + b"x"), "the size"),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_reading_back_finds_every_fault(fault, tmp_path):
    infos = [TensorInfo("codes", torch.int8, (4, 4)), TensorInfo("scale", torch.float32, (3,))]
    container = Container(infos, {"by": "test"})
    path = tmp_path / "c.safetensors"
    codes, scale = torch.arange(16, dtype=torch.int8).view(4, 4), torch.tensor([1.0, 2.0, 3.0])
    done = []
    with path.open("wb") as file:
        parts = [("codes", codes[:1]), ("scale", scale), ("codes", codes[1:])]
        checksums = container.write(file, parts, done.append)
    assert sum(done) == container.size and path.stat().st_size == container.size and len(container.header) % 8 == 0
    tensors, metadata = read_safetensors(path)
    assert torch.equal(tensors["codes"], codes) and torch.equal(tensors["scale"], scale) and metadata == {"by": "test"}
    if fault is None:
        container.verify(path, checksums, "c", done.append)
        assert sum(done) == 2 * container.size
        return
    damage, what = FAULTS[fault]
    damage(path, container.size)
    with pytest.raises(TurboError, match=f"c was not stored as it was written: {what} differs"):
        container.verify(path, checksums, "c", done.append)


def test_every_tensor_is_aligned_to_its_type():
    infos = [
        TensorInfo("odd", torch.int8, (3, 1)),
        TensorInfo("half", torch.bfloat16, (1,)),
        TensorInfo("s", torch.float32, ()),
    ]
    spans = Container(infos, {}).spans
    assert spans["s"][0] % 8 == 0 and spans["half"][0] % 2 == 0
    assert sorted(end - start for start, end in spans.values()) == [2, 3, 4]


@pytest.mark.parametrize("parts,message", [([], "smaller than planned"), ([torch.zeros(4)], "larger than planned")])
def test_a_tensor_of_another_size_than_planned_is_a_fault(parts, message, tmp_path):
    container = Container([TensorInfo("scale", torch.float32, (3,))], {})
    with (tmp_path / "c").open("wb") as file, pytest.raises(ValueError, match=message):
        container.write(file, [("scale", part) for part in parts], lambda count: None)

"""Models in several files: whichever file is named, the whole is read, or what is wrong with the parts is said."""

import json

import pytest
import torch
from td_pack.tests.support import checkpoints, hostile, lingbot
from td_pack.turbo_core.checkpoint.read import model_class, read
from td_pack.turbo_core.checkpoint.shards import choices, files_of
from td_pack.turbo_core.errors import CheckpointError

PART = "diffusion_pytorch_model-{:05}-of-00003.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def tensors():
    return {f"blocks.{i}.weight": torch.full((4,), float(i)) for i in range(7)}


@pytest.fixture
def index(tensors, tmp_path):
    return lingbot.write_shards(tmp_path / "high_noise_model", tensors, 3)


def refusal(path):
    with pytest.raises(CheckpointError) as error:
        read(path)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("name", [INDEX, PART.format(1), PART.format(3)])
def test_any_file_of_the_set_is_the_whole(index, tensors, name):
    found, metadata = read(index.with_name(name))
    assert found.keys() == tensors.keys() and metadata == {"format": "pt"}
    assert all(torch.equal(found[key], value) for key, value in tensors.items())
    assert [path.name for path in files_of(index.with_name(name))] == [PART.format(i) for i in (1, 2, 3)]


def test_parts_without_an_index_are_counted_by_their_names(index, tensors):
    index.unlink()
    assert read(index.with_name(PART.format(2)))[0].keys() == tensors.keys()


def test_pth_parts(tensors, tmp_path):
    keys = list(tensors)
    for i in (1, 2):
        checkpoints.write_pth(tmp_path / f"model-0000{i}-of-00002.bin", {key: tensors[key] for key in keys[i - 1 :: 2]})
    assert read(tmp_path / "model-00001-of-00002.bin")[0].keys() == tensors.keys()


@pytest.mark.parametrize("name", [INDEX, PART.format(1)])
def test_missing_parts_are_named(index, name):
    index.with_name(PART.format(2)).unlink()
    text = refusal(index.with_name(name))
    assert f"in 3 parts, of which 1 are missing: {PART.format(2)};" in text and "same folder" in text


def test_at_most_five_missing_parts_are_listed(tensors, tmp_path):
    index = lingbot.write_shards(tmp_path, tensors, 7)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    text = refusal(index)
    assert "7 parts, of which 7 are missing" in text and "00005-of-00007.safetensors and 2 more;" in text


def test_a_cut_part_is_named(index):
    part = index.with_name(PART.format(2))
    part.write_bytes(part.read_bytes()[:-4])
    assert refusal(index).startswith(f"{PART.format(2)} is cut short")


def test_a_part_of_another_model_is_named(index, tensors):
    checkpoints.write_safetensors(index.with_name(PART.format(2)), {"other": torch.ones(1)})
    assert f"says that {PART.format(2)} holds blocks." in refusal(index)
    checkpoints.write_safetensors(index.with_name(PART.format(2)), {"blocks.0.weight": torch.ones(4)})
    assert f"blocks.0.weight is both in {PART.format(1)} and in {PART.format(2)}" in refusal(index)


NO_INDEX = {
    "no JSON": "weights",
    "empty": "",
    "a list": "[]",
    "no map": '{"metadata": {}}',
    "an empty map": '{"weight_map": {}}',
    "a list for a map": '{"weight_map": []}',
    "a number for a file": '{"weight_map": {"a": 1}}',
    "another folder": '{"weight_map": {"a": "../secret.safetensors"}}',
    "an absolute path": '{"weight_map": {"a": "/etc/passwd"}}',
    "a drive": '{"weight_map": {"a": "C:model.safetensors"}}',
    "a backslash": '{"weight_map": {"a": "..\\\\model.safetensors"}}',
    "the folder": '{"weight_map": {"a": ".."}}',
    "another index": '{"weight_map": {"a": "x.index.json"}}',
    "a name too long for a file": json.dumps({"weight_map": {"a": "b" * 300}}),
    "half a character": '{"weight_map": {"a": "\\ud800"}}',
    "deep": "[" * 100000,
    "too many files": json.dumps({"weight_map": {str(i): f"{i}.safetensors" for i in range(1001)}}),
}


@pytest.mark.parametrize("content", NO_INDEX.values(), ids=NO_INDEX)
def test_an_index_that_is_none_is_refused(content, tmp_path):
    path = tmp_path / INDEX
    path.write_text(content)
    assert "does not list the files of a model" in refusal(path)


def test_an_index_that_an_editor_saved_is_read(index, tensors):
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes())
    assert read(index)[0].keys() == tensors.keys()


def test_a_misnamed_part_is_refused(tmp_path):
    path = checkpoints.write_safetensors(tmp_path / "m-00004-of-00003.safetensors", {"a": torch.ones(1)})
    assert "named like part 00004 of 00003" in refusal(path)


def test_an_index_elsewhere_is_no_checkpoint(tmp_path):
    assert "does not list" in refusal(tmp_path / "absent.index.json")


def test_a_model_in_parts_is_listed_once():
    files = {"a.safetensors", *(f"high/{PART.format(i)}" for i in (1, 2, 3)), f"high/{INDEX}"}
    files |= {*(f"low/{PART.format(i)}" for i in (1, 2, 3)), "odd/m-00002-of-00002.safetensors"}
    listed = sorted(name for name in files if not name.endswith(".json"))
    assert choices(listed, files.__contains__) == [
        "a.safetensors",
        f"high/{INDEX}",
        f"low/{PART.format(1)}",
        "odd/m-00002-of-00002.safetensors",
    ]


@pytest.mark.parametrize(
    "content, name",
    [('{"_class_name": "WanModelFast"}', "WanModelFast"), ("{}", ""), ("[]", ""), ("no", ""), (None, "")],
)
def test_the_class_of_a_folder(content, name, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert model_class(tmp_path / "model.safetensors") == name


def test_a_pipe_in_place_of_an_index_or_a_description_is_not_waited_for(tmp_path):
    with hostile.limits():
        assert "does not list the files of a model" in refusal(hostile.fifo(tmp_path / INDEX))
        hostile.fifo(tmp_path / "config.json")
        assert model_class(tmp_path / "model.safetensors") == ""

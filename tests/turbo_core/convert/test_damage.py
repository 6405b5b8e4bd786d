"""Sources that are damaged, or change while they are read."""

import pytest
from td_pack.tests.support import checkpoints
from td_pack.turbo_core.checkpoint.archive import records
from td_pack.turbo_core.convert.convert import Request, convert
from td_pack.turbo_core.errors import CheckpointError


@pytest.fixture(scope="module")
def state_dict():
    return checkpoints.upstream_state_dict(3, layers=1)


def transposed(state_dict):
    return state_dict | {name: value.T.contiguous().T for name, value in state_dict.items() if value.ndim == 2}


CUT = {
    "pth": (checkpoints.write_pth, dict, "keep"),
    "safetensors": (checkpoints.write_safetensors, dict, "int8_block"),
    "int8": (checkpoints.write_pth, checkpoints.quantized, "bf16"),
    "transposed": (checkpoints.write_pth, transposed, "keep"),
}


@pytest.mark.parametrize("role", ["model", "lora"])
@pytest.mark.parametrize("kind", CUT)
def test_a_source_that_is_cut_while_it_is_read_is_one_sentence(kind, role, state_dict, tmp_path):
    """From a mapping of the file the first read beyond its new end would end this process with SIGBUS."""
    write, change, weights = CUT[kind]
    model = write(tmp_path / f"model.{'safetensors' if kind == 'safetensors' else 'pth'}", change(state_dict))
    lora = checkpoints.lora(rank=64, layers={"blocks.0.ffn.0": (512, 256)})
    files = {"model": model, "lora": write(tmp_path / f"lora{model.suffix}", lora)}

    def cut(stage, done, total):
        if stage == "writing":
            with files[role].open("r+b") as file:
                file.truncate(4096)

    with pytest.raises(
        CheckpointError, match=f"{files[role].name} became shorter while it was read; wait until nothing"
    ):
        convert(Request(model, tmp_path / "new.safetensors", weights, lora=files["lora"]), cut)
    assert sorted(tmp_path.iterdir()) == sorted(files.values())


@pytest.mark.parametrize("record", ["data/0", "data/7", "version"])
def test_a_record_that_differs_from_its_checksum_is_named(record, state_dict, tmp_path):
    path = checkpoints.write_pth(tmp_path / "model.pth", state_dict)
    place = next(each.start for each in records(path) if each.name == f"model/{record}")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"model.pth is damaged .the checksum of model/{record} differs"):
        convert(Request(path, tmp_path / "new.safetensors"))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_checksums_is_converted(state_dict, tmp_path):
    path = checkpoints.write_pth(tmp_path / "model.pth", state_dict, checksums=False)
    convert(Request(path, tmp_path / "new.safetensors"))

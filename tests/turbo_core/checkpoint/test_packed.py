"""4-bit files of bitsandbytes: read from its own output, and refused in one sentence when anything is off."""

import json

import pytest
import torch
from td_pack.tests.support import lingbot
from td_pack.turbo_core.checkpoint.identify import identify
from td_pack.turbo_core.checkpoint.packed import as_unpacked, packed_weights
from td_pack.turbo_core.errors import CheckpointError

LAYER = "blocks.0.ffn.2.weight"
STATE = f"{LAYER}.quant_state.bitsandbytes__nf4"


@pytest.fixture(scope="module")
def plain():
    return lingbot.state_dict(5, layers=1)


@pytest.fixture(scope="module")
def packed(plain):
    return lingbot.packed(plain)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
def test_bitsandbytes_files_are_known(plain, kind, double):
    given = lingbot.packed(plain, kind, double)
    spec, tensors = identify("file", given)
    assert (spec.camera, spec.four_bit, spec.int8, spec.turbo) == ("cam", kind, False, False)
    assert spec.describe() == f"LingBot-World cam I2V 1 layers of width 256 {kind.upper()}"
    states = packed_weights("file", tensors)
    assert {key: tuple(value.shape) for key, value in as_unpacked(tensors, states).items()} == {
        key: tuple(value.shape) for key, value in plain.items()
    }
    assert len(states) == sum(lingbot.is_linear(key, value) for key, value in plain.items())
    assert all((states[key].nested_blocksize > 0) == double for key in states)


def test_codes_stay_on_their_storage(packed):
    """A memory map, and the place in the file that ComfyUI keeps with it."""
    _, tensors = identify("file", packed)
    assert tensors[LAYER].shape == (256 * 512 // 2,)
    assert tensors[LAYER].untyped_storage().data_ptr() == packed[LAYER].untyped_storage().data_ptr()


def test_codes_stored_as_another_type_are_the_same_bytes(packed):
    wide = packed | {LAYER: packed[LAYER].view(-1).view(torch.bfloat16).view(-1, 1)}
    assert torch.equal(identify("file", wide)[1][LAYER], packed[LAYER].flatten())


def test_a_prefix_is_stripped(packed):
    spec, _ = identify("file", {f"model.diffusion_model.{key}": value for key, value in packed.items()})
    assert spec.four_bit == "nf4"


def state(**changes) -> torch.Tensor:
    """The JSON tensor with entries changed, or removed where the value is None."""
    values = {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "bfloat16",
        "shape": [256, 512],
        "nested_blocksize": 256,
        "nested_dtype": "float32",
        "nested_offset": 0.5,
    }
    return text(json.dumps({key: value for key, value in (values | changes).items() if value is not None}))


def text(content: str) -> torch.Tensor:
    return torch.tensor(list(content.encode()), dtype=torch.uint8)


UNREADABLE = {
    "no JSON": text("quant"),
    "no object": text("[1, 2]"),
    "not UTF-8": torch.full((8,), 255, dtype=torch.uint8),
    "deep": text("[" * 50000),
    "empty": torch.empty(0, dtype=torch.uint8),
    "huge": torch.full((1 << 17,), 32, dtype=torch.uint8),
    "floats": torch.zeros(16),
    "another type": state(quant_type="fp4"),
    "unknown type": state(quant_type="nf5"),
    "no shape": state(shape=None),
    "a bias": state(shape=[256]),
    "an empty shape": state(shape=[0, 512]),
    "a negative shape": state(shape=[-256, -512]),
    "a shape beyond all memory": state(shape=[1 << 40, 1 << 40]),
    "a shape beyond all numbers": state(shape=[10**400, 512]),
    "an offset beyond all numbers": state(nested_offset=10**400),
    "a fractional shape": state(shape=[256.0, 512]),
    "a truth value": state(shape=[True, 512]),
    "block size 0": state(blocksize=0),
    "an odd block size": state(blocksize=65),
    "nested block size 0": state(nested_blocksize=0),
    "no offset": state(nested_offset=None),
    "infinite offset": state(nested_offset=float("inf")),
    "an offset in words": state(nested_offset="much"),
}


@pytest.mark.parametrize("wrong", UNREADABLE.values(), ids=UNREADABLE)
def test_a_description_that_makes_no_sense_is_refused(packed, wrong):
    with pytest.raises(CheckpointError, match=f"file: {STATE} does not describe a 4-bit weight.*download"):
        identify("file", packed | {STATE: wrong})


DAMAGED = {
    "no description": ({STATE: None}, f"{STATE} is missing; download it again"),
    "no absmax": ({f"{LAYER}.absmax": None}, f"1 missing: {LAYER}.absmax. It looks like a truncated file"),
    "no code book": ({f"{LAYER}.quant_map": None}, f"1 missing: {LAYER}.quant_map"),
    "no nested scales": ({f"{LAYER}.nested_absmax": None}, f"1 missing: {LAYER}.nested_absmax"),
    "no nested code book": ({f"{LAYER}.nested_quant_map": None}, f"1 missing: {LAYER}.nested_quant_map"),
    "no codes": ({LAYER: None}, f"1 missing: {LAYER}"),
    "no bias": ({"blocks.0.ffn.2.bias": None}, "1 missing: blocks.0.ffn.2.bias"),
    "codes cut": ({LAYER: torch.zeros(100, 1, dtype=torch.uint8)}, f"{LAYER} [100] instead of [65536]"),
    "scales cut": (
        {f"{LAYER}.absmax": torch.zeros(2047, dtype=torch.uint8)},
        f"{LAYER}.absmax [2047] instead of [2048]",
    ),
    "scales not quantized": ({f"{LAYER}.absmax": torch.zeros(2048)}, f"of a wrong type: {LAYER}.absmax float32"),
    "a short code book": ({f"{LAYER}.quant_map": torch.zeros(15)}, f"{LAYER}.quant_map [15] instead of [16]"),
    "a code book in half": (
        {f"{LAYER}.quant_map": torch.zeros(16).half()},
        f"of a wrong type: {LAYER}.quant_map float16",
    ),
    "NaN in the code book": (
        {f"{LAYER}.nested_quant_map": torch.full((256,), torch.nan)},
        f"1 not finite: {LAYER}.nested_quant_map",
    ),
    "another shape": ({STATE: state(shape=[512, 256])}, f"{LAYER} [512, 256] instead of [256, 512]"),
    "single scales that are double": (
        {STATE: state(nested_blocksize=None, nested_offset=None)},
        f"2 unexpected: {LAYER}.nested_absmax, {LAYER}.nested_quant_map",
    ),
    "a layer too many": (
        {f"blocks.0.gate.{name}": torch.zeros(8, dtype=torch.uint8) for name in ("weight", "bias")},
        "2 unexpected: blocks.0.gate.weight, blocks.0.gate.bias",
    ),
    "a packed layer too many": (
        lingbot.pack("blocks.0.gate.weight", torch.ones(128, 128)),
        "1 unexpected: blocks.0.gate.weight. It looks like another model with camera control",
    ),
    "a packed norm": (
        {"blocks.0.norm3.weight": None, **lingbot.pack("blocks.0.norm3.weight", torch.ones(2, 128))},
        "blocks.0.norm3.weight [2, 128] instead of [256]",
    ),
}


@pytest.mark.parametrize("changes, message", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_says_what_is_wrong(packed, changes, message):
    damaged = {key: value for key, value in (packed | changes).items() if value is not None}
    with pytest.raises(CheckpointError) as error:
        identify("file", damaged)
    assert message in str(error.value) and "\n" not in str(error.value)

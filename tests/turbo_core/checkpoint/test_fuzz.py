"""Mutated checkpoint files end in a model or in a CheckpointError of one sentence, within limits of memory and time.

Mutations know the structure: entries of a safetensors header and its metadata, operations of a pickle, records of an
archive. `--long` tries a hundred times as many, drawn anew each time."""

import itertools
import json
import pickle
import pickletools
import struct
from pathlib import Path

import pytest
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from td_pack.tests.support import checkpoints, hostile
from td_pack.turbo_core.checkpoint.metadata import METADATA_KEY
from td_pack.turbo_core.errors import LONGEST, CheckpointError
from td_pack.turbo_core.host.load import load_model

SIZES = dict(dim=128, ffn_dim=256, layers=1)
MODELS = {
    "int8": checkpoints.upstream_state_dict(1, sla=True, int8=True, **SIZES),
    "bf16": checkpoints.upstream_state_dict(2, sla=True, **SIZES),
}
NUMBERS = st.one_of(st.integers(-2, 300), st.sampled_from([1 << 31, 1 << 40, (1 << 63) - 1, 1 << 64, -(1 << 63)]))
WORDS = st.sampled_from(["transformer", "layers", "format", "params", "dim", "num_layers", "blocks.0.ffn.0", "x"])
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.text(max_size=5), st.just("int8_tensorwise"))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
METADATA = st.dictionaries(
    st.sampled_from(["config", "_quantization_metadata", METADATA_KEY, "format"]),
    st.one_of(JSON.map(json.dumps), st.text(max_size=20), st.just("[" * 50_000)),
    min_size=1,
    max_size=2,
)
SUFFIXES = [".scale", ".weight_scale", ".comfy_quant", ".absmax", ".quant_state.bitsandbytes__nf4", "\n\x1b[31m"]
FIELDS = {
    "dtype": st.sampled_from(["F32", "BF16", "I8", "U8", "F8_E4M3", "BOOL", "I64", "F4", "", 3]),
    "shape": st.lists(NUMBERS, max_size=6),
    "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
}
OPERATIONS = [b"cbuiltins\nbytearray\n", b"cposix\nsystem\n", b"\x8e" + b"\xff" * 8, b"R", b"}", b"(", b"t", b"0", b"Q"]


def bytes_changed(draw, content: bytes) -> bytes:
    """Some bytes left out and others put in their place."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        changed[place : place + draw(st.integers(0, 40))] = draw(st.binary(max_size=12))
    return bytes(changed)


@st.composite
def safetensors_files(draw, model: str) -> bytes:
    content = safetensors.torch.save(MODELS[model])
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(header)))
        entry = header.pop(name)
        match draw(st.sampled_from(["field", "drop", "rename", "any"])):
            case "field":
                field = draw(st.sampled_from(sorted(FIELDS)))
                header[name] = (entry if isinstance(entry, dict) else {}) | {field: draw(FIELDS[field])}
            case "rename":
                header[name + draw(st.sampled_from(SUFFIXES))] = entry
            case "any":
                header[name] = draw(JSON)
    if draw(st.booleans()):
        header["__metadata__"] = draw(METADATA)
    text = json.dumps(header).encode()
    if draw(st.integers(0, 4)) == 0:
        text = bytes_changed(draw, text)
    length = len(text) if draw(st.integers(0, 9)) else draw(NUMBERS) % (1 << 64)
    end = len(data) if draw(st.integers(0, 9)) else draw(st.integers(0, len(data)))
    return struct.pack("<Q", length) + text + data[:end]


@st.composite
def archives(draw, saved: Path) -> tuple[bytes, dict[str, bytes], bool]:
    """The description, the other records, and whether they are compressed."""
    records = hostile.read_archive(saved)
    described = records.pop("data.pkl")
    if draw(st.booleans()):
        described = draw(pickles(described))
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(records)))
        content = records.pop(name)
        if renamed := draw(st.sampled_from(["", name, "byteorder", "data.pkl", "data/99", "x" * 300])):
            records[renamed] = content[: draw(st.integers(0, len(content)))]
    return described, records, draw(st.integers(0, 9)) == 0


@st.composite
def pickles(draw, described: bytes) -> bytes:
    """Operations left out, repeated and exchanged for others, or bytes changed."""
    if draw(st.integers(0, 3)) == 0:
        return bytes_changed(draw, described)
    places = [place for _, _, place in pickletools.genops(described)] + [len(described)]
    operations = [described[a:b] for a, b in itertools.pairwise(places)]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(operations) - 2))
        number = pickle.dumps(draw(NUMBERS), 2)[2:-1]
        other = draw(st.sampled_from([number, *OPERATIONS, *operations]))
        operations[place : place + 1] = draw(st.sampled_from([[], [other], operations[place : place + 1] * 1000]))
    return b"".join(operations)


def check(path) -> None:
    with hostile.limits(megabytes=1024, seconds=5):
        try:
            model = load_model(str(path))
        except CheckpointError as error:
            text = str(error)
            assert text.isprintable() and len(text) <= LONGEST and text.endswith("."), text
        else:
            assert model.model.spec.layers == SIZES["layers"]


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_any_mutated_file_is_a_model_or_one_sentence(kind, tmp_path, request):
    long = request.config.getoption("--long")
    saved = {name: checkpoints.write_pth(tmp_path / f"{name}.pth", model) for name, model in MODELS.items()}
    path = tmp_path / f"m.{kind}"

    @settings(
        max_examples=100 * (100 if long else 1),
        derandomize=not long,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data(), model=st.sampled_from(sorted(MODELS)))
    def every_file(data, model):
        if kind == "pth":
            hostile.write_archive(path, *data.draw(archives(saved[model])))
        else:
            path.write_bytes(data.draw(safetensors_files(model)))
        check(path)

    every_file()

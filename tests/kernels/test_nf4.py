"""Dequantizing 4-bit weights: bit-equal to bitsandbytes, on every backend that runs here."""

from collections import Counter

import pytest
import torch
from td_pack.kernels import NoBackendError, counting, nf4_dequantize, use_backend
from td_pack.kernels.nf4 import reference
from td_pack.tests.support import lingbot
from td_pack.tests.support.interpreter import DEVICE
from td_pack.turbo_core.checkpoint.packed import packed_weights

# The interpreter truncates to bfloat16; the compiled kernel rounds, as every conversion that Triton compiles.
TRITON_DTYPES = (torch.float32, torch.float16) + (torch.bfloat16,) * (DEVICE.type == "cuda")
# One block, whole blocks, a ragged last block, an odd number of elements, more than a program holds.
SHAPES = [(1, 64), (3, 128), (48, 70), (5, 13), (1, 1), (130, 300)]


def arguments(sd: dict, dtype: torch.dtype, key: str = "w", device: torch.device | str = "cpu") -> tuple:
    """What the operator takes, from the tensors of one packed weight."""
    state = packed_weights("file", sd)[key]
    parts = [sd[key].flatten().view(torch.uint8), sd[f"{key}.absmax"], sd[f"{key}.quant_map"]]
    parts += [sd.get(f"{key}.nested_absmax"), sd.get(f"{key}.nested_quant_map")]
    parts = [None if part is None else part.to(device) for part in parts]
    return (*parts, state.nested_offset, state.blocksize, state.nested_blocksize, *state.shape, dtype)


def draw(shape: tuple[int, int]) -> torch.Tensor:
    """Rows of very different sizes, one of them zero, as in a weight with outliers."""
    generator = torch.Generator().manual_seed(shape[0] * shape[1])
    weight = torch.randn(shape, generator=generator) * torch.logspace(-6, 2, shape[0])[:, None]
    weight[shape[0] // 2] = 0
    return weight


def run(backend: str, sd: dict, dtype: torch.dtype) -> torch.Tensor:
    with use_backend(backend):
        return nf4_dequantize(*arguments(sd, dtype, device=DEVICE if backend == "triton" else "cpu")).cpu()


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    "shape, double, blocksize",
    [(shape, double, 64) for shape in SHAPES for double in (True, False)]
    + [((48, 90), True, blocksize) for blocksize in (32, 128, 4096)],
    ids=str,
)
def test_it_equals_bitsandbytes_to_the_bit(shape, double, blocksize, backend):
    sd = lingbot.pack("w", draw(shape), double=double, blocksize=blocksize)
    for dtype in (torch.float32, torch.float16, torch.bfloat16) if backend == "torch" else TRITON_DTYPES:
        weight = run(backend, sd, dtype)
        assert weight.shape == shape and weight.dtype == dtype
        assert torch.equal(weight.view(torch.uint8), lingbot.unpack(sd, "w", dtype).view(torch.uint8))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_fp4_is_unpacked_by_the_same_rule(backend):
    sd = lingbot.pack("w", draw((48, 70)), "fp4")
    # bitsandbytes computes FP4's levels; in the table that it writes they are rounded to float32 (2^-24).
    expected = lingbot.unpack(sd, "w", torch.float32)
    torch.testing.assert_close(run(backend, sd, torch.float32), expected, rtol=2**-23, atol=0)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_weight_of_a_nan_scale_is_nan(backend):
    sd = lingbot.pack("w", draw((48, 128)))
    sd["w.nested_absmax"] = torch.full_like(sd["w.nested_absmax"], torch.nan)
    assert run(backend, sd, torch.float32).isnan().all()


def test_eager_makes_no_large_temporary(monkeypatch):
    """Chunks of a few blocks give the same as one chunk."""
    sd = lingbot.pack("w", draw((130, 300)))
    expected = lingbot.unpack(sd, "w", torch.float32)
    monkeypatch.setattr(reference, "CHUNK", 4096)
    widest = []
    embedding = torch.nn.functional.embedding
    monkeypatch.setattr(
        reference.F, "embedding", lambda index, table: widest.append(len(index)) or embedding(index, table)
    )
    assert torch.equal(reference.nf4_dequantize(*arguments(sd, torch.float32)), expected)
    assert max(widest) == 2048 and len(widest) == -(-130 * 300 // 4096)


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
def test_registration(double):
    given = arguments(lingbot.pack("w", draw((48, 70)), double=double), torch.bfloat16)
    torch.library.opcheck(nf4_dequantize, given)
    calls = Counter()
    with counting(calls):
        compiled = torch.compile(lambda *parts: nf4_dequantize(*parts), fullgraph=True, backend="eager")
        assert torch.equal(compiled(*given), nf4_dequantize(*given))
    assert calls == {"nf4 dequantize": 2}


def test_a_dtype_without_kernel_runs_in_torch():
    given = arguments(lingbot.pack("w", draw((3, 128))), torch.float64)
    assert torch.equal(nf4_dequantize(*given).float(), nf4_dequantize(*given[:-1], torch.float32))
    with use_backend("triton"), pytest.raises(NoBackendError, match="not float64"):
        nf4_dequantize(*given)


WRONG = {
    "codes too short": (0, torch.zeros(10, dtype=torch.uint8)),
    "codes in int8": (0, torch.zeros(192, dtype=torch.int8)),
    "codes as a column": (0, torch.zeros(192, 1, dtype=torch.uint8)),
    "a scale too few": (1, torch.zeros(5, dtype=torch.uint8)),
    "scales in float": (1, torch.zeros(6)),
    "a short table": (2, torch.zeros(15)),
    "two scales of scales": (3, torch.zeros(2)),
    "no scales of scales": (3, None),
    "no table of scales": (4, None),
    "no block size": (6, 0),
    "an odd block size": (6, 65),
    "no rows": (8, 0),
    "another shape": (9, 256),
}


@pytest.mark.parametrize("place, value", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_together_is_refused(place, value):
    given = list(arguments(lingbot.pack("w", draw((3, 128))), torch.float32))
    given[place] = value
    with pytest.raises(ValueError, match="needs codes"):
        nf4_dequantize(*given)

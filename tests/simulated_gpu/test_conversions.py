"""cvt against exact rational arithmetic, torch and Python's integers: rounding modes, saturation, NaN, 8-bit
formats."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from .exact import FORMATS, rounded
from .program import evaluate
from .test_floating import NAN, SPECIAL, operands, to_bits, values

F32 = operands("f32", 1)[0]
# Every value of a format with its neighbors half a last place away, so that ties and both sides of them occur.
HALF_WAY = np.concatenate(
    [np.float32(v) * np.array([1, 1 + 2.0**-n, 1 - 2.0**-n, 1 + 2.0**-n + 2.0**-20], np.float32) for n in (3, 4, 8, 9, 11, 12) for v in (1, 1.5, -2.0**-7, 440, 2.0**-15)]
).view(np.uint32)  # fmt: skip
INPUTS = np.concatenate([F32, HALF_WAY])


def reference(bits, kind: str, mode: str, satfinite: bool = False) -> list[float]:
    """Each float32 in a format, exactly."""
    out = []
    for value in values(bits, "f32"):
        if math.isnan(value) or value == 0:
            out.append(value)
        elif math.isinf(value):
            limit = float(FORMATS[kind][2])
            out.append(math.copysign(limit, value) if satfinite or not FORMATS[kind][3] else value)
        else:
            out.append(rounded(Fraction(value), kind, mode, satfinite))
    return out


@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_float32_to_half_precision(kind, mode):
    want = [to_bits(v, kind) for v in reference(INPUTS, kind, mode)]
    assert evaluate(f"cvt.{mode}.{kind}.f32", INPUTS, bits=16).tolist() == want
    pairs = evaluate(f"cvt.{mode}.{kind}x2.f32", INPUTS, INPUTS[::-1], bits=32)  # the first operand is the upper half
    assert (pairs >> 16).tolist() == want and (pairs & 0xFFFF).tolist() == want[::-1]


def float8_bits(value: float, kind: str) -> int:
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[kind]
    return 0x7F if math.isnan(value) else int(torch.tensor(value).to(dtype).view(torch.uint8))


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_float32_to_8_bits_saturates(kind):
    want = [float8_bits(v, kind) for v in reference(INPUTS, kind, "rn", satfinite=True)]
    got = evaluate(f"cvt.rn.satfinite.{kind}x2.f32", INPUTS, INPUTS[::-1], bits=16)
    assert (got >> 8).tolist() == want and (got & 0xFF).tolist() == want[::-1]


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_8_bit_codes_are_torch_s(kind):
    codes = np.arange(256, dtype=np.uint16)
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}[kind]
    want = torch.arange(256, dtype=torch.uint8).view(dtype).half().view(torch.uint16).numpy()
    got = evaluate(f"cvt.rn.f16x2.{kind}x2", codes | (codes[::-1] << 8), bits=32)
    finite = torch.arange(256, dtype=torch.uint8).view(dtype).float().isnan().logical_not().numpy()
    assert np.array_equal((got & 0xFFFF)[finite], want[finite]) and ((got & 0xFFFF)[~finite] == NAN["f16"]).all()
    assert np.array_equal((got >> 16)[finite[::-1]], want[::-1][finite[::-1]])


def test_float16_pairs_to_8_bits():
    halves = np.array(SPECIAL["f16"], np.uint16)
    wide = np.float32(halves.view(np.float16)).view(np.uint32)
    want = evaluate("cvt.rn.satfinite.e4m3x2.f32", wide[::-1], wide, bits=16)
    got = evaluate("cvt.rn.satfinite.e4m3x2.f16x2", halves | (halves[::-1].astype(np.uint32) << 16), bits=16)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision_to_float32_is_exact(kind):
    codes = np.arange(0, 65536, 7, dtype=np.uint16)[:1024]
    codes = np.concatenate([codes, np.array(SPECIAL[kind], np.uint16)])
    want = np.array(values(codes, kind), np.float32)
    got = evaluate(f"cvt.f32.{kind}", codes, bits=32).view(np.float32)
    assert np.array_equal(got, want, equal_nan=True) and np.array_equal(np.signbit(got), np.signbit(want))


ROUNDERS = {"rni": lambda x: math.floor(x) + (x % 1 > 0.5 or (x % 1 == 0.5 and math.floor(x) % 2)), "rzi": math.trunc,
            "rmi": math.floor, "rpi": math.ceil}  # fmt: skip


@pytest.mark.parametrize("mode", ROUNDERS)
@pytest.mark.parametrize("letter, bits", [("s", 8), ("s", 16), ("s", 32), ("u", 16), ("u", 32), ("s", 64), ("u", 64)])
def test_float32_to_integers_rounds_and_saturates(letter, bits, mode):
    edges = [
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        2.0**7 - 0.5,
        -(2.0**7) - 0.5,
        2.0**15,
        2.0**31,
        2.0**32,
        -(2.0**31),
        2.0**63,
        -(2.0**63),
        2.0**64,
        126.5,
    ]
    x = np.concatenate([F32, np.array(edges, np.float32).view(np.uint32)])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if letter == "s" else (0, 2**bits - 1)

    def one(v):
        if math.isnan(v):
            return 0
        return (low if v < 0 else high) if math.isinf(v) else min(max(int(ROUNDERS[mode](Fraction(v))), low), high)

    width = max(bits, 16)
    got = evaluate(f"cvt.{mode}.{letter}{bits}.f32", x, bits=width)
    assert got.tolist() == [one(v) & (2**width - 1) for v in values(x, "f32")]


@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("letter", ["s", "u"])
def test_integers_to_float32(letter, mode):
    x = np.array([0, 1, 2**24 + 1, 2**24 + 3, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 129, 2**25 + 2], np.uint32)
    numbers = x.view(np.int32).tolist() if letter == "s" else x.tolist()
    want = [to_bits(rounded(Fraction(v), "f32", mode) if v else 0.0, "f32") for v in numbers]
    assert evaluate(f"cvt.{mode}.f32.{letter}32", x, bits=32).tolist() == want


@pytest.mark.parametrize("letter", ["s", "u"])
def test_64_bit_integers_to_float32_round_once(letter):
    x = np.array([2**62 + 2**38 + 1, 2**63 - 1, 2**40 + 2**16, 2**40 + 2**16 + 1, 2**64 - 1], np.uint64)
    numbers = x.view(np.int64).tolist() if letter == "s" else x.tolist()
    want = [to_bits(rounded(Fraction(v), "f32"), "f32") for v in numbers]
    assert evaluate(f"cvt.rn.f32.{letter}64", x, bits=32).tolist() == want


@pytest.mark.parametrize("saturate", ["", ".sat"])
@pytest.mark.parametrize("target", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_integer_to_integer(source, target, saturate):
    bits, wide = int(source[1:]), int(target[1:])
    register = {8: np.uint16, 16: np.uint16, 32: np.uint32, 64: np.uint64}[bits]
    x = np.array([0, 1, 127, 128, 255, 2 ** (bits - 1) - 1, 2 ** (bits - 1), 2**bits - 1], np.uint64).astype(register)
    if bits == 8:
        x |= np.uint16(0x5A00)  # what lies above the source in its register does not matter

    def one(v):
        v &= 2**bits - 1
        v -= (2**bits) * (source[0] == "s" and v >> (bits - 1))
        low, high = (-(2 ** (wide - 1)), 2 ** (wide - 1) - 1) if target[0] == "s" else (0, 2**wide - 1)
        if saturate:
            v = min(max(v, low), high)
        v &= 2**wide - 1
        v -= (2**wide) * (target[0] == "s" and v >> (wide - 1))
        return v & (2 ** max(wide, 16) - 1)

    assert evaluate(f"cvt{saturate}.{target}.{source}", x, bits=max(wide, 16)).tolist() == [one(v) for v in x.tolist()]

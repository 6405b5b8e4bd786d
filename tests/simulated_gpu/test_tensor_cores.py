"""Matrix fragments and products: element by element as the PTX ISA's figures place them, against numpy and torch."""

import numpy as np
import pytest
import torch

from .formats import E4M3, E5M2, decode
from .operands import BITS, draw, numbers
from .program import launch


def pack(matrix: np.ndarray, kind: str, place) -> np.ndarray:
    """Registers [register, lane] from a matrix; place(lane, register, element) gives row and column."""
    per = 32 // BITS[kind]
    registers = matrix.size * BITS[kind] // 32 // 32
    out = np.zeros((registers, 32, per), matrix.dtype)
    for register in range(registers):
        for lane in range(32):
            for e in range(per):
                out[register, lane, e] = matrix[place(lane, register, e)]
    return out.view(np.uint32).reshape(registers, 32)


def multiply(opcode: str, a, b, c) -> np.ndarray:
    """mma on one warp: registers [n, 32] in and out."""
    arrays, lines = [np.ascontiguousarray(x) for x in (a, b, c)], ["\tmul.wide.u32 %rd9, %r0, 4;"]
    groups, register = [], 10
    for n, x in enumerate(arrays):
        names = []
        lines.append(f"\tadd.s64 %rd{10 + n}, %rd{n}, %rd9;")
        for row in range(len(x)):
            lines.append(f"\tld.global.b32 %r{register}, [%rd{10 + n}+{128 * row}];")
            names.append(f"%r{register}")
            register += 1
        groups.append("{" + ", ".join(names) + "}")
    out = np.zeros_like(arrays[2])
    lines.append(f"\t{opcode} {groups[2]}, {groups[0]}, {groups[1]}, {groups[2]};\n\tadd.s64 %rd13, %rd3, %rd9;")
    lines += [f"\tst.global.b32 [%rd13+{128 * n}], {name};" for n, name in enumerate(groups[2].strip("{}").split(", "))]
    launch("\n".join(lines), *arrays, out)
    return out


@pytest.mark.parametrize(
    "k, result, kind",
    [(16, "f32", "bf16"), (16, "f32", "f16"), (16, "f16", "f16"), (8, "f32", "bf16"), (32, "s32.satfinite", "s8"), (32, "s32", "u8"),
     (16, "s32", "s8"), (32, "f32", "e4m3"), (32, "f32", "e5m2"), (32, "f16", "e4m3")],
)  # fmt: skip
def test_mma(k, result, kind):
    a, b = draw(16, k, kind, 0), draw(k, 8, kind, 1)
    result, _, clamp = result.partition(".")
    per, half = 32 // BITS[kind], k // 2 if k * BITS[kind] == 256 else k

    def place_a(lane, register, e):
        return lane // 4 + 8 * (register % 2), register // 2 * half + lane % 4 * per + e

    def place_b(lane, register, e):
        return register * half + lane % 4 * per + e, lane // 4

    integers = result == "s32"
    c = np.random.default_rng(2).normal(size=(16, 8)) * 4
    c = np.round(c * 1e6).astype(np.int32) if integers else c.astype(np.float16 if result == "f16" else np.float32)
    if clamp:
        c[0, 0], c[1, 1] = 2**31 - 5, -(2**31) + 5
    elements = 2 if result == "f16" else 1

    def place_c(lane, register, e):
        column = lane % 4 * 2 + (e if elements == 2 else register % 2)
        return lane // 4 + 8 * (register if elements == 2 else register // 2), column

    registers = np.zeros((16 * 8 // 32 // elements, 32, elements), c.dtype)
    for register, lane, e in np.ndindex(registers.shape):
        registers[register, lane, e] = c[place_c(lane, register, e)]
    opcode = f"mma.sync.aligned.m16n8k{k}.row.col{'.' + clamp if clamp else ''}.{result}.{kind}.{kind}.{result}"
    got = multiply(opcode, pack(a, kind, place_a), pack(b, kind, place_b), registers.view(np.uint32).reshape(-1, 32))
    got = got.view(c.dtype).reshape(registers.shape)
    want = numbers(a, kind) @ numbers(b, kind) + c.astype(np.float64)
    if clamp:
        want = np.clip(want, -(2**31), 2**31 - 1)
    for register, lane, e in np.ndindex(registers.shape):
        value = want[place_c(lane, register, e)]
        if integers:
            assert int(got[register, lane, e]) == int(value)
        else:  # sums of up to 32 terms below 20 in float32, then one rounding to the result
            assert abs(float(got[register, lane, e]) - value) <= 1e-5 + abs(value) * (
                2.0**-11 if result == "f16" else 0
            )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_and_stmatrix(count, transposed):
    """Rows of 8 elements go through shared memory: each lane's pair comes from row lane / 4, columns lane % 4 * 2 and
    the next."""
    matrices = np.random.default_rng(0).integers(0, 2**16, (count, 8, 8)).astype(np.uint16)
    out, back = np.zeros((count, 32), np.uint32), np.zeros((count, 8, 8), np.uint16)
    trans, registers = ".trans" if transposed else "", "{" + ", ".join(f"%r{40 + n}" for n in range(count)) + "}"
    stores = "\n".join(f"st.global.b32 [%rd11+{128 * n}], %r{40 + n};" for n in range(count))
    body = f"""
        mul.lo.s32 %r1, %r0, 16;
        setp.lt.u32 %p1, %r0, {8 * count};
        mad.wide.u32 %rd10, %r0, 16, %rd0;
        @%p1 ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd10];
        @%p1 st.shared.v4.b32 [%r1], {{%r10, %r11, %r12, %r13}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {registers}, [%r1];
        mad.wide.u32 %rd11, %r0, 4, %rd1;
        {stores}
        bar.sync 0;
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r1+512], {registers};
        bar.sync 0;
        mad.wide.u32 %rd12, %r0, 16, %rd2;
        @%p1 ld.shared.v4.b32 {{%r20, %r21, %r22, %r23}}, [%r1+512];
        @%p1 st.global.v4.b32 [%rd12], {{%r20, %r21, %r22, %r23}};"""
    launch(body, matrices, out, back, shared=1024)
    want = matrices.swapaxes(1, 2) if transposed else matrices
    for n in range(count):
        for lane in range(32):
            pair = want[n, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert out[n, lane] == int(pair[0]) | int(pair[1]) << 16
    assert np.array_equal(back, matrices)


def test_8_bit_tables_are_torch_s():
    codes = torch.arange(256, dtype=torch.uint8)
    for kind, dtype in ((E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)):
        want = codes.view(dtype).float().numpy()
        assert np.array_equal(decode(codes.numpy(), kind), want, equal_nan=True)

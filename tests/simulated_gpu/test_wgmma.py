"""wgmma: products of a warp group from swizzled shared memory and registers, and every order that it asks for."""

import numpy as np
import pytest
import torch

from .faults import DivergentBarrier, ReadBeforeWait, SharedRace
from .program import launch

N, K = 16, 32  # two products of k = 16
PITCH = 128  # bytes of a row, the widest swizzle
B_AT = 64 * PITCH


def swizzled(matrix: np.ndarray) -> np.ndarray:
    """Rows of 16-bit elements as shared memory holds them with 128-byte swizzle: 16-byte chunk c of row r lies at c xor
    (r mod 8)."""
    image = np.zeros((len(matrix), 8, 8), np.uint16)
    chunks = matrix.reshape(len(matrix), -1, 8)
    for r in range(len(matrix)):
        for c in range(chunks.shape[1]):
            image[r, c ^ (r % 8)] = chunks[r, c]
    return image


def codes(rows: int, columns: int, seed: int) -> np.ndarray:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return x.view(torch.uint16).numpy()


def numbers(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def descriptor(start: int) -> int:
    """9.7.15.5.1: address and strides in units of 16 bytes; 1024 bytes between groups of eight rows; swizzle of 128
    bytes."""
    return start >> 4 | 1 << 16 | (1024 >> 4) << 32 | 1 << 62


REGISTERS = [f"%r{100 + n}" for n in range(N // 2)]
STORE = """
    mul.lo.s32 %r5, %r0, 16;
    cvt.u64.u32 %rd6, %r5;
    add.s64 %rd7, %rd0, %rd6;
""" + "".join(
    f"ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd7+{2048 * n}];\n"
    f"st.shared.v4.b32 [%r5+{2048 * n}], {{%r10, %r11, %r12, %r13}};\n"
    for n in range(6)
)
PARTS = {
    "proxy": "fence.proxy.async.shared::cta;", "barrier": "bar.sync 0;", "fence": "wgmma.fence.sync.aligned;",
    "commit": "wgmma.commit_group.sync.aligned;", "wait": "wgmma.wait_group.sync.aligned 0;", "between": "",
}  # fmt: skip


def program(a_operands: list[str], b_starts: list[int], transposed: int, parts: dict[str, str]) -> str:
    """Stores the image, multiplies twice with accumulation, writes the accumulators as [register, thread]."""
    flags = f"1, 1, {'0, ' if a_operands[0].startswith('%rd') else ''}{transposed}"
    lines = [STORE, parts["proxy"], parts["barrier"], *(f"mov.b32 {r}, 0;" for r in REGISTERS)]
    if a_operands[0].startswith(
        "{"
    ):  # lane (warp, g, t) of fragment A reads its words from the linear matrix at the image's end
        lines += ["mul.wide.u32 %rd8, %r0, 4; \n add.s64 %rd9, %rd2, %rd8;"]
        lines += [f"ld.global.b32 %r{40 + n}, [%rd9+{512 * n}];" for n in range(8)]
    lines += [f"mov.b64 %rd{20 + n}, {descriptor(32 * n)};" for n in range(2)]
    lines += [f"mov.b64 %rd{30 + n}, {descriptor(start)};" for n, start in enumerate(b_starts)]
    lines += [parts["fence"]]
    for n, a in enumerate(a_operands):
        lines.append(
            f"wgmma.mma_async.sync.aligned.m64n{N}k16.f32.bf16.bf16 {{{', '.join(REGISTERS)}}}, {a}, %rd{30 + n}, 1, "
            f"{flags};"
        )
    lines += [
        parts["commit"],
        parts["between"],
        parts["wait"],
        "mul.wide.u32 %rd10, %r0, 4;",
        "add.s64 %rd11, %rd1, %rd10;",
    ]
    lines += [f"st.global.b32 [%rd11+{512 * n}], {r};" for n, r in enumerate(REGISTERS)]
    return "\n".join(lines)


def fragment(a: np.ndarray) -> np.ndarray:
    """A [64, 32] as registers uint32 [8, 128]: register (k step, k half, row half), lane (warp, g, t)."""
    out = np.zeros((8, 128, 2), np.uint16)
    for register, thread, e in np.ndindex(out.shape):
        warp, lane = divmod(thread, 32)
        row = 16 * warp + 8 * (register % 2) + lane // 4
        out[register, thread, e] = a[row, register // 4 * 16 + register // 2 % 2 * 8 + lane % 4 * 2 + e]
    return out.view(np.uint32).reshape(8, 128)


def run(a_from="shared", b_major="k", **changed) -> np.ndarray:
    """The product [64, N] that the emulator gives."""
    a, b = codes(64, K, 0), codes(N, K, 1)
    image = np.zeros((64 + 32, 8, 8), np.uint16)
    image[:64], image[64 : 64 + (N if b_major == "k" else K)] = (
        swizzled(a),
        swizzled(b if b_major == "k" else b.T.copy()),
    )
    steps = [0, 32] if b_major == "k" else [0, 16 * PITCH]
    operands = ["%rd20", "%rd21"] if a_from == "shared" else ["{%r40, %r41, %r42, %r43}", "{%r44, %r45, %r46, %r47}"]
    out, words = np.zeros((N // 2, 128), np.float32), fragment(a)
    body = program(operands, [B_AT + step for step in steps], int(b_major != "k"), PARTS | changed)
    launch("@kernel.py:9\n" + body, image, out, words, threads=128, shared=image.nbytes)
    got = np.zeros((64, N))
    for register, thread in np.ndindex(out.shape):
        warp, lane = divmod(thread, 32)
        chunk, half, e = register // 4, register // 2 % 2, register % 2
        got[16 * warp + 8 * half + lane // 4, 8 * chunk + lane % 4 * 2 + e] = out[register, thread]
    # Products of bfloat16 are exact in float32, 32 of them below 20 are added up
    np.testing.assert_allclose(got, numbers(a) @ numbers(b).T, rtol=0, atol=1e-4)
    return got


@pytest.mark.parametrize("b_major", ["k", "n"])
@pytest.mark.parametrize("a_from", ["shared", "registers"])
def test_product(a_from, b_major):
    run(a_from, b_major)


@pytest.mark.parametrize(
    "fault, message, changed",
    [
        (SharedRace, "passed no fence.proxy.async", {"proxy": ""}),
        (SharedRace, "written after the last barrier", {"barrier": ""}),
        (ReadBeforeWait, "written after the last wgmma.fence", {"fence": ""}),
        (ReadBeforeWait, "a register of a wgmma in flight", {"wait": ""}),
        (ReadBeforeWait, "a register of a wgmma in flight", {"wait": "wgmma.wait_group.sync.aligned 1;"}),
        (ReadBeforeWait, "a register of a wgmma in flight", {"commit": ""}),
        (ReadBeforeWait, "a register of a wgmma in flight", {"between": "mov.b32 %r100, 0;"}),
        (ReadBeforeWait, "written while a wgmma that reads it", {"between": "st.shared.b32 [%r5], 0;"}),
        (DivergentBarrier, "wgmma.wait_group", {"wait": "setp.lt.u32 %p1, %r0, 32; \n @%p1 bra $L_x; \n "
                                                        "wgmma.wait_group.sync.aligned 0; \n$L_x:"}),
    ],
)  # fmt: skip
def test_each_order_is_needed(fault, message, changed):
    with pytest.raises(fault, match=message) as caught:
        run(**changed)
    assert "kernel.py:9" in str(caught.value)


def test_registers_of_a_in_flight_may_be_read_but_not_written():
    run("registers", between="add.s32 %r60, %r40, %r41;")
    with pytest.raises(ReadBeforeWait):
        run("registers", between="mov.b32 %r40, 0;")

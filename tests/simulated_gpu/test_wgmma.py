"""wgmma: products of a warp group from swizzled shared memory and registers, and every order that it asks for."""

import numpy as np
import pytest

from .faults import DivergentBarrier, ReadBeforeWait, SharedRace
from .operands import BITS, draw, numbers
from .program import launch

N = 16
ROW = 64  # bytes of K: two products of 32
PITCH = 128  # bytes of a row, the widest swizzle
B_AT = 64 * PITCH


def swizzled(matrix: np.ndarray) -> np.ndarray:
    """Rows as shared memory holds them with 128-byte swizzle: 16-byte chunk c of row r lies at c xor (r mod 8)."""
    image = np.zeros((len(matrix), 8, 16), np.uint8)
    chunks = np.ascontiguousarray(matrix).view(np.uint8).reshape(len(matrix), -1, 16)
    for r in range(len(matrix)):
        for c in range(chunks.shape[1]):
            image[r, c ^ (r % 8)] = chunks[r, c]
    return image


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


def program(opcode: str, a_operands: list[str], b_starts: list[int], flags: str, parts: dict[str, str]) -> str:
    """Stores the image, multiplies twice with accumulation, writes the accumulators as [register, thread]."""
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
        lines.append(f"{opcode} {{{', '.join(REGISTERS)}}}, {a}, %rd{30 + n}, 1{flags};")
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
    """A [64, K] as registers uint32 [8, 128]: register (k step, k half, row half), lane (warp, g, t)."""
    per = 4 // a.itemsize
    out = np.zeros((8, 128, per), a.dtype)
    for register, thread, e in np.ndindex(out.shape):
        warp, lane = divmod(thread, 32)
        row = 16 * warp + 8 * (register % 2) + lane // 4
        out[register, thread, e] = a[row, (register // 2 * 4 + lane % 4) * per + e]
    return out.view(np.uint32).reshape(8, 128)


def run(result="f32", kind="bf16", a_from="shared", b_major="k", **changed) -> None:
    """Compares the product [64, N] that the emulator gives with numpy's."""
    size = BITS[kind] // 8
    a, b = draw(64, ROW // size, kind, 0), draw(N, ROW // size, kind, 1)
    stored = swizzled(b if b_major == "k" else b.T)
    image = np.zeros((64 + 32, *stored.shape[1:]), np.uint8)
    image[:64], image[64 : 64 + len(stored)] = swizzled(a), stored
    steps = [0, 32] if b_major == "k" else [0, 16 * PITCH]
    operands = ["%rd20", "%rd21"] if a_from == "shared" else ["{%r40, %r41, %r42, %r43}", "{%r44, %r45, %r46, %r47}"]
    flags = ", 1, 1" if result != "s32" else ""  # of integers neither sign nor major order can be chosen
    flags += "" if size == 1 else f"{', 0' if a_from == 'shared' else ''}, {int(b_major != 'k')}"
    out = np.zeros((N // 2, 128), np.int32 if result == "s32" else np.float32)
    opcode = f"wgmma.mma_async.sync.aligned.m64n{N}k{32 // size}.{result}.{kind}.{kind}"
    body = program(opcode, operands, [B_AT + step for step in steps], flags, PARTS | changed)
    launch("@kernel.py:9\n" + body, image, out, fragment(a), threads=128, shared=image.nbytes)
    got = np.zeros((64, N))
    for register, thread in np.ndindex(out.shape):
        warp, lane = divmod(thread, 32)
        chunk, half, e = register // 4, register // 2 % 2, register % 2
        got[16 * warp + 8 * half + lane // 4, 8 * chunk + lane % 4 * 2 + e] = out[register, thread]
    # Products are exact in float32, 64 of them below 20 are added up.
    want = numbers(a, kind) @ numbers(b, kind).T
    np.testing.assert_allclose(got, want, rtol=0, atol=0 if result == "s32" else 1e-4)


@pytest.mark.parametrize("a_from", ["shared", "registers"])
@pytest.mark.parametrize("result, kind, b_major", [
    ("f32", "bf16", "k"), ("f32", "bf16", "n"), ("f32", "f16", "n"), ("f32", "e4m3", "k"), ("s32", "s8", "k"),
])  # fmt: skip
def test_product(a_from, result, kind, b_major):
    run(result, kind, a_from, b_major)


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
    run(a_from="registers", between="add.s32 %r60, %r40, %r41;")
    with pytest.raises(ReadBeforeWait):
        run(a_from="registers", between="mov.b32 %r40, 0;")

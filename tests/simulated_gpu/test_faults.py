"""Each fault the emulator knows is raised by a small kernel that commits it, with the source line, and not by its
mended twin."""

import numpy as np
import pytest

from .execute import Machine
from .faults import (
    DivergentBarrier,
    Misaligned,
    OutOfBounds,
    ReadBeforeWait,
    SharedRace,
    UninitializedRead,
    UnsupportedInstruction,
)
from .parse import parse
from .program import launch, text

DATA = 64  # uint32 of the first array


def run(body: str, threads: int = 64, shared: int = 1024, written=None) -> np.ndarray:
    data = np.arange(DATA, dtype=np.uint32)
    launch("@kernel.py:41\n" + body, data, threads=threads, shared=shared, written=written)
    return data


def check(fault, body: str, message: str, mended: str | None = None, **options) -> None:
    """`body` raises the fault with the message and where it is; `mended` does not."""
    with pytest.raises(fault, match=message) as caught:
        run(body, **options)
    assert "kernel.py:41" in str(caught.value) and "thread" in str(caught.value)
    if mended is not None:
        run(mended, **options)


def test_out_of_bounds():
    access = "mad.wide.u32 %rd1, %r0, 4, %rd0; \n ld.global.b32 %r1, [%rd1+{}];"
    check(
        OutOfBounds, access.format(4), r"4 bytes beyond the end of array 0 \(256 bytes\).*thread 63", access.format(0)
    )
    with pytest.raises(OutOfBounds, match="below every allocation"):
        run("mov.b64 %rd1, 4096; \n ld.global.b32 %r1, [%rd1];")


def test_a_masked_access_is_none():
    run("setp.lt.u32 %p1, %r0, 0; \n mad.wide.u32 %rd1, %r0, 4, %rd0; \n @%p1 ld.global.b32 %r1, [%rd1+4096];")


def test_shared_memory_out_of_bounds():
    access = "shl.b32 %r1, %r0, 2; \n st.shared.b32 [%r1+{}], %r0;"
    check(OutOfBounds, access.format(800), "the block has 1024 bytes of shared memory", access.format(768))


@pytest.mark.parametrize("space", ["global", "shared"])
def test_misaligned(space):
    base = "mad.wide.u32 %rd1, %r0, 4, %rd0;" if space == "global" else "shl.b32 %r1, %r0, 2;"
    register = "%rd1" if space == "global" else "%r1"
    store = f"{base} \n setp.lt.u32 %p1, %r0, 32; \n @%p1 st.{space}.v2.b32 [{register}], {{%r0, %r0}};"
    check(Misaligned, store, "8 bytes is not aligned", store.replace("4, %rd0", "8, %rd0").replace(", 2;", ", 3;"))


# Each thread writes its word of shared memory and reads that of a thread of the other warp.
EXCHANGE = """
    shl.b32 %r1, %r0, 2;
    xor.b32 %r2, %r1, 128;
    st.shared.b32 [%r1], %r0;
    {barrier}
    ld.shared.b32 %r3, [%r2];
    {second}
    st.shared.b32 [%r1], %r3;"""


def test_races_between_warps():
    both = {"barrier": "bar.sync 0;", "second": "bar.sync 0;"}
    mended = EXCHANGE.format(**both)
    check(SharedRace, EXCHANGE.format(**both | {"barrier": ""}), "another warp wrote is read without a barrier", mended)
    check(
        SharedRace, EXCHANGE.format(**both | {"second": ""}), "another warp reads is written without a barrier", mended
    )


def test_two_warps_write_one_word():
    store = "and.b32 %r1, %r0, 31; \n shl.b32 %r2, %r1, 2; \n {} \n st.shared.b32 [%r2], {};"
    body = "setp.lt.u32 %p1, %r0, 32; \n" + store.format("@%p1 st.shared.b32 [%r2], %r0;", "%r0")
    check(SharedRace, body, "written by two warps", body.replace("[%r2], %r0;", "[%r2], %r1;"))


def test_two_lanes_of_one_store_disagree():
    check(
        SharedRace,
        "mov.b32 %r1, 0; \n st.shared.b32 [%r1], %r0;",
        "two lanes of one store",
        "mov.b32 %r1, 0; \n st.shared.b32 [%r1], 7;",
    )


def test_exchange_within_a_warp_needs_no_barrier():
    run(EXCHANGE.format(barrier="", second="").replace("128", "64"))


COPY = """
    shl.b32 %r1, %r0, 2;
    mad.wide.u32 %rd1, %r0, 4, %rd0;
    cp.async.ca.shared.global [%r1], [%rd1], 4;
    cp.async.commit_group;
    {wait}
    {barrier}
    {use}
    cp.async.wait_group 0;"""


def test_cp_async_before_its_wait():
    parts = {
        "wait": "cp.async.wait_group 0;",
        "barrier": "bar.sync 0;",
        "use": "ld.shared.b32 %r2, [%r1]; \n st.global.b32 [%rd1], %r2;",
    }
    mended = COPY.format(**parts)
    late = "cp.async.wait_group 1;"
    check(ReadBeforeWait, COPY.format(**parts | {"wait": late}), "read while a cp.async to it is in flight", mended)
    parts["use"] = "st.shared.b32 [%r1], 1;"
    check(
        ReadBeforeWait,
        COPY.format(**parts | {"wait": late}),
        "written while a cp.async to it is in flight",
        COPY.format(**parts),
    )


def test_cp_async_of_another_warp_needs_a_barrier_after_the_wait():
    parts = {
        "wait": "cp.async.wait_group 0;",
        "barrier": "",
        "use": "xor.b32 %r3, %r1, 128; \n ld.shared.b32 %r2, [%r3];",
    }
    check(SharedRace, COPY.format(**parts), "another warp wrote", COPY.format(**parts | {"barrier": "bar.sync 0;"}))


def test_cp_async_in_flight_at_the_end():
    body = COPY.format(wait="", barrier="", use="").replace("cp.async.wait_group 0;", "")
    with pytest.raises(ReadBeforeWait, match="program ends while a cp.async is in flight"):
        run(body)


def test_cp_async_groups_and_zero_fill():
    """Two groups: the wait for all but one ends the first alone; bytes past the source size become zeros."""
    data = np.arange(1, DATA + 1, dtype=np.uint32)
    body = """
        shl.b32 %r1, %r0, 2;
        mad.wide.u32 %rd1, %r0, 4, %rd0;
        and.b32 %r5, %r0, 1;
        shl.b32 %r5, %r5, 2;
        cp.async.ca.shared.global [%r1], [%rd1], 4, %r5;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r1+256], [%rd1], 4;
        cp.async.commit_group;
        cp.async.wait_group 1;
        ld.shared.b32 %r2, [%r1];
        cp.async.wait_group 0;
        ld.shared.b32 %r3, [%r1+256];
        add.s32 %r4, %r2, %r3;
        st.global.b32 [%rd1], %r4;"""
    launch(body, data, threads=64, shared=512)
    assert data.tolist() == [n * (1 + (n - 1) % 2) for n in range(1, DATA + 1)]


def test_reading_what_nothing_wrote():
    check(
        UninitializedRead,
        "shl.b32 %r1, %r0, 2; \n ld.shared.b32 %r2, [%r1];",
        "shared memory is read where nothing was written",
    )
    marks = np.full(4 * DATA, 255, np.uint8)
    marks[40:44] = 0
    load = "mad.wide.u32 %rd1, %r0, 4, %rd0; \n ld.global.b32 %r1, [%rd1];"
    check(UninitializedRead, load, "array 0 is read where nothing was written.*thread 10", written=marks.copy())
    run("mad.wide.u32 %rd1, %r0, 4, %rd0; \n st.global.b32 [%rd1], %r0; \n ld.global.b32 %r1, [%rd1];", written=marks)
    assert marks.all()  # the kernel's writes are noted for the next launch


def test_a_barrier_that_half_of_the_threads_reach():
    body = "setp.lt.u32 %p1, %r0, 32; \n @%p1 bra $L_in; \n bra.uni $L_out; \n$L_in: \n bar.sync 0; \n$L_out:"
    check(DivergentBarrier, body, "not all threads of the block reach", body.replace("%r0, 32", "%r0, 64"))


@pytest.mark.parametrize(
    "opcode",
    ["tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%r1], 64", "frobnicate.f32 %r1, %r2", "bar.sync 1, 64"],
)
def test_unknown_instructions_name_themselves(opcode):
    with pytest.raises(UnsupportedInstruction) as caught:
        Machine(parse(text(f"@kernel.py:7\n\t{opcode};", 0)), 0)
    assert opcode.split()[0] in str(caught.value) and "kernel.py:7" in str(caught.value)


def test_control_flow_reconverges_and_blocks_differ():
    """Each thread loops as often as its number says, blocks twice as often; results are stored together."""
    out = np.zeros(128, np.uint32)
    body = """
        mov.u32 %r1, %ctaid.x;
        add.s32 %r2, %r1, 1;
        mul.lo.s32 %r3, %r2, %r0;
        mov.b32 %r4, 0;
        mov.b32 %r5, 0;
$L_loop:
        setp.ge.u32 %p1, %r5, %r3;
        @%p1 bra $L_done;
        add.s32 %r4, %r4, %r5;
        add.s32 %r5, %r5, 1;
        bra.uni $L_loop;
$L_done:
        shl.b32 %r6, %r1, 6;
        add.s32 %r7, %r6, %r0;
        mad.wide.u32 %rd1, %r7, 4, %rd0;
        st.global.b32 [%rd1], %r4;"""
    launch(body, out, threads=64, blocks=2)
    assert out.tolist() == [sum(range(n * block)) for block in (1, 2) for n in range(64)]


def test_atomics_add_up_over_threads_and_blocks():
    data = np.array([5, 0, 9], np.uint32)
    body = """
        atom.global.add.u32 %r1, [%rd0], 1;
        red.global.max.u32 [%rd0+4], %r0;
        atom.global.cas.b32 %r2, [%rd0+8], 9, 3;"""
    launch(body, data, threads=64, blocks=2)
    assert data.tolist() == [5 + 128, 63, 3]

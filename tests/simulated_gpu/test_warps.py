"""Instructions across lanes: where values come from, which lanes must take part, what the results are."""

import numpy as np
import pytest

from .faults import DivergentBarrier
from .program import evaluate, launch

LANE = np.arange(32, dtype=np.uint32)
EVERY = np.full(32, 0xFFFFFFFF, np.uint32)


def shuffle(mode: str, amount: int, clamp: int) -> list[int]:
    """shfl of the lane number."""
    a, c = np.full(32, amount, np.uint32), np.full(32, clamp, np.uint32)
    return evaluate(f"shfl.sync.{mode}.b32", LANE, a, c, EVERY, bits=32).tolist()


def test_shuffles():
    assert shuffle("bfly", 5, 31) == [lane ^ 5 for lane in range(32)]
    assert shuffle("up", 3, 0) == [lane - 3 if lane >= 3 else lane for lane in range(32)]
    assert shuffle("down", 3, 31) == [lane + 3 if lane + 3 < 32 else lane for lane in range(32)]
    assert shuffle("idx", 7, 31) == [7] * 32


def test_shuffles_in_segments_of_eight_lanes():
    """The clamp operand: the segment mask in bits 8 to 12, the limit in the low five."""
    segments = (0b11000 << 8) | 31
    assert shuffle("idx", 2, segments) == [lane // 8 * 8 + 2 for lane in range(32)]
    assert shuffle("down", 2, segments) == [lane + 2 if lane % 8 < 6 else lane for lane in range(32)]
    assert shuffle("up", 2, 0b11000 << 8) == [lane - 2 if lane % 8 >= 2 else lane for lane in range(32)]


def test_the_predicate_of_a_shuffle_says_whether_the_source_was_inside():
    out = np.zeros(32, np.uint32)
    body = """
        shfl.sync.down.b32 %r1|%p1, %r0, 3, 31, -1;
        selp.b32 %r2, 1, 0, %p1;
        mad.wide.u32 %rd1, %r0, 4, %rd0;
        st.global.b32 [%rd1], %r2;"""
    launch(body, out)
    assert out.tolist() == [1] * 29 + [0] * 3


@pytest.mark.parametrize("name", ["max", "min", "add", "and", "or", "xor"])
def test_reductions(name):
    kind = "s32" if name in ("max", "min", "add") else "b32"
    x = np.random.default_rng(0).integers(0, 2**32, 64, np.uint64).astype(np.uint32)
    numbers = x.view(np.int32) if kind == "s32" else x
    ufunc = {
        "max": np.maximum,
        "min": np.minimum,
        "add": np.add,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[name]
    want = [ufunc.reduce(row, dtype=row.dtype) for row in numbers.reshape(2, 32)]
    got = evaluate(f"redux.sync.{name}.{kind}", x, np.resize(EVERY, 64), bits=32)
    assert got.view(numbers.dtype).tolist() == np.repeat(want, 32).tolist()


def test_votes():
    p = LANE % 3 == 0
    assert (
        evaluate("vote.sync.ballot.b32", p, EVERY, bits=32).tolist() == [int((1 << LANE[p].astype(object)).sum())] * 32
    )
    for mode, mixed, true, false in (("all", 0, 1, 0), ("any", 1, 1, 0), ("uni", 0, 1, 1)):
        for values, want in ((p, mixed), (LANE >= 0, true), (LANE < 0, false)):
            assert evaluate(f"vote.sync.{mode}.pred", values, EVERY, bits=0).tolist() == [want] * 32


def test_match():
    x = LANE % 5
    want = [sum(1 << k for k in range(32) if k % 5 == lane % 5) for lane in range(32)]
    assert evaluate("match.any.sync.b32", x, EVERY, bits=32).tolist() == want
    assert evaluate("match.all.sync.b32", x, EVERY, bits=32).tolist() == [0] * 32
    assert evaluate("match.all.sync.b32", x * 0, EVERY, bits=32).tolist() == EVERY.tolist()


@pytest.mark.parametrize("instruction", ["shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1", "redux.sync.max.s32 %r1, %r0, -1", "bar.sync 0", "bar.warp.sync -1"])  # fmt: skip
def test_threads_that_stay_away_are_a_fault(instruction):
    body = f"""
        @attention.py:12
        setp.lt.u32 %p1, %r0, 20;
        @%p1 bra $L_in;
        bra.uni $L_out;
$L_in:
        {instruction};
$L_out:"""
    with pytest.raises(DivergentBarrier, match=r"(?s)thread (0|20).*attention.py:12"):
        launch(body, np.zeros(32, np.uint32))


def test_lanes_outside_of_the_member_mask_may_stay_away():
    out = np.zeros(32, np.uint32)
    body = """
        mad.wide.u32 %rd1, %r0, 4, %rd0;
        setp.lt.u32 %p1, %r0, 16;
        @%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, 65535;
        @%p1 st.global.b32 [%rd1], %r1;"""
    launch(body, out)
    assert out.tolist() == [lane ^ 1 for lane in range(16)] + [0] * 16

"""The kernel of test_aot.py: imported by the compiling process only, which is not in interpreter mode."""

import os

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["length"])
def multiply(a, b, out, length, stride, SIZE: tl.constexpr):
    """out[SIZE, SIZE] = a[SIZE, length] b[SIZE, length]^T"""
    o = tl.arange(0, SIZE)
    acc = tl.zeros((SIZE, SIZE), tl.float32)
    for start in range(0, length, 64):
        p = o[:, None].to(tl.int64) * stride + start + tl.arange(0, 64)[None, :]
        acc += tl.dot(tl.load(a + p), tl.load(b + p).T)
    tl.store(out + o[:, None] * SIZE + o[None, :], acc)


def __getattr__(name: str):
    """Ends the process, as a crash in the compiler does."""
    if name == "die":
        os._exit(3)
    raise AttributeError(name)

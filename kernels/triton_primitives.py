"""Parts of quantization that the kernels of several operators share."""

import triton
import triton.language as tl

# 1.5 * 2^23. The sum of it and x, |x| < 2^22, holds x rounded to an integer, halves to even, in the low bits of its
# mantissa: a conversion between float32 and integers without the conversion unit, which is slow.
ROUND = tl.constexpr(12582912.0)
ROUND_BITS = tl.constexpr(0x4B400000)  # the same number as int32


@triton.jit
def max_abs(x, axis: tl.constexpr = None):
    """max(|x|) of a float32 block, or along an axis, NaN if there is one: a maximum of floats would drop NaN. The bits
    of magnitudes, as integers, are in the order of the magnitudes, with NaN above all."""
    return tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis).to(tl.float32, bitcast=True)


@triton.jit
def find_amax(x, MIN_AMAX: tl.constexpr, axis: tl.constexpr = None):
    """max(|x|, MIN_AMAX), NaN if x has one."""
    amax = max_abs(x, axis)
    return tl.where(amax < MIN_AMAX, MIN_AMAX, amax)


@triton.jit
def encode(x, amax, LEVELS: tl.constexpr):
    """int8 codes -LEVELS..127 of x float32 with max(|x|) = amax, rounded half to even; NaN becomes 0."""
    scaled = x * tl.div_rn(LEVELS + 0.0, amax)
    codes = tl.minimum(tl.maximum((scaled + ROUND) - ROUND, -LEVELS), 127.0)
    return tl.where(scaled == scaled, codes, 0.0).to(tl.int8)


@triton.jit
def encode_symmetric(x, amax):
    """int8 codes -127..127 of x float32 with max(|x|) = amax, rounded half to even. The low byte of the sum is the
    code; nothing exceeds 127, and the code of a NaN does not matter, since its scale is NaN."""
    return (x * tl.div_rn(127.0, amax) + ROUND).to(tl.int32, bitcast=True).to(tl.int8)

"""Runs Triton kernels without a GPU in Triton's interpreter, with two of its faults corrected. With a GPU it does
nothing.

`install` must run before anything imports triton, as comfy_kitchen does. The interpreter (up to 3.6) reads bfloat16 bit
patterns as integers in `tl.dot` and refuses loops whose bound was loaded from memory. Rounding to bfloat16 and fp8
still truncates: test in float32 and float16.
"""

import os

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _allow_loaded_loop_bounds(interpreter) -> None:
    patch_tensor = interpreter._patch_lang_tensor

    def as_index(tensor) -> int:
        return int(tensor.handle.data.reshape(-1)[0])

    def patched(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", as_index)

    interpreter._patch_lang_tensor = patched


def _widen_bfloat16_in_dot(interpreter) -> None:
    import numpy as np
    import triton.language as tl

    create_dot = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16 or handle.data.dtype != np.uint16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return interpreter.TensorHandle(bits.view(np.float32), tl.float32)

    def patched(self, a, b, *rest):
        return create_dot(self, widened(a), widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = patched


def install() -> None:
    if DEVICE.type != "cpu":
        return
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.runtime.interpreter as interpreter

    _allow_loaded_loop_bounds(interpreter)
    _widen_bfloat16_in_dot(interpreter)

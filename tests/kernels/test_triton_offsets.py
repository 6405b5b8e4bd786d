"""Tensors of more elements than a 32-bit integer counts, without the memory: views over pages that nothing touches, and
launches on meta tensors, which are recorded and not run."""

import importlib
import math

import pytest
import torch
from td_pack.kernels.attention.format import block_count
from td_pack.kernels.attention.triton import block_selection, sage
from td_pack.kernels.attention.triton import sla as triton_sla
from td_pack.kernels.int8.format import tile_count
from td_pack.kernels.int8.triton import linear, quantize
from td_pack.kernels.norm.triton import layer_norm, rms_norm, rms_norm_silu
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.kernels import TRITON_FILES, module_name
from td_pack.tests.support.tensors import turns

# 128 rows of the largest tile lie 2^31 elements apart, and offsets inside a tile still fit 32 bits.
LENGTH, STRIDE = 129, 1 << 24


def far(*tail: int) -> torch.Tensor:
    """[1, LENGTH, *tail] in float16 whose last token starts at element 2^31; 4 GB of address space, less than a MB of
    memory."""
    width = math.prod(tail)
    memory = torch.empty((LENGTH - 1) * STRIDE + width, dtype=torch.float16, device=DEVICE)
    x = memory.as_strided((1, LENGTH, width), (0, STRIDE, 1))
    x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(width)))
    return x.unflatten(2, tail)


def near(x: torch.Tensor) -> torch.Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def modulation(x):
    return torch.randn(2, 1, 1, x.shape[2], generator=torch.Generator().manual_seed(1)).to(DEVICE)


def attend(qkv):
    return qkv[:, :, 0:1], qkv[:, :, 1:2], qkv[:, :, 2:3]


CASES = {
    "quantize_block": ((130,), quantize.quantize_block),
    "quantize_group": ((130,), quantize.quantize_group),
    "quantize_row": ((130,), quantize.quantize_row),
    "rms_norm_rope": (
        (64,),
        lambda x: rms_norm.rms_norm_rope(x, x.new_ones(64), turns(LENGTH, 64, DEVICE), heads=1, eps=1e-6),
    ),
    "layer_norm_modulate": ((130,), lambda x: layer_norm.layer_norm_modulate(x, *modulation(x), eps=1e-6)),
    "layer_norm_modulate_quantize": (
        (130,),
        lambda x: layer_norm.layer_norm_modulate_quantize(x, *modulation(x), eps=1e-6, by="block"),
    ),
    "rms_norm_silu_pad": (  # its tokens as frames of five pixels
        (5, 8),
        lambda x: rms_norm_silu.rms_norm_silu_pad(x.unsqueeze(2).movedim(-1, 1), x.new_ones(8), None),
    ),
    "sparse_linear_attention": (
        (3, 64),
        lambda x: triton_sla.sparse_linear_attention(*attend(x), x.new_ones(64, 64), x.new_ones(64), topk=0.7),
    ),
    "sage_sparse_linear_attention": (
        (3, 64),
        lambda x: sage.sage_sparse_linear_attention(
            *attend(x), x.new_ones(64, 64), x.new_ones(64), topk=0.7, pv="int8"
        ),
    ),
    "block_map": ((3, 64), lambda x: block_selection.block_map(*attend(x)[:2], 0.7)),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_beyond_two_to_the_31(case):
    """The same bits as from neighboring rows: 32-bit offsets would read 8 GB before the tensor."""
    tail, run = CASES[case]
    x = far(*tail)
    for got, want in zip(*(y if isinstance(y, tuple) else (y,) for y in (run(x), run(near(x)))), strict=True):
        assert torch.equal(got, want)


# --- launches
# -----------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for a kernel and keeps how it is launched."""

    def __init__(self, launches):
        self.launches = launches

    def __getitem__(self, grid):
        def launch(*args, **options):
            self.launches.append((grid, [*args, *options.values()]))

        return launch


@pytest.fixture
def launches(monkeypatch):
    recorded = []
    for path in TRITON_FILES:
        module = importlib.import_module(f"td_pack.{module_name(path)}")
        for name in vars(module):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Recorder(recorded))
    return recorded


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# The 14B model at 720p, eight videos at once.
BATCH, TOKENS, WIDTH, FFN = 8, 75600, 5120, 13824


def weights(n, k):
    return (
        meta(n, k, dtype=torch.int8),
        meta(tile_count(n), tile_count(k), dtype=torch.float32),
        meta(n),
    )


LARGE = {
    "quantize_block": lambda: quantize.quantize_block(meta(BATCH, TOKENS, FFN)),
    "quantize_group": lambda: quantize.quantize_group(meta(BATCH, TOKENS, FFN)),
    "quantize_row": lambda: quantize.quantize_row(meta(BATCH, TOKENS, FFN)),
    "int8_linear": lambda: linear.int8_linear(meta(BATCH, TOKENS, WIDTH), *weights(FFN, WIDTH)),
    "gelu_quantize": lambda: linear.int8_matmul_gelu_quantize(
        *quantize.quantize_group(meta(BATCH, TOKENS, WIDTH)), *weights(FFN, WIDTH), out_dtype=torch.bfloat16, by="group"
    ),
    "gate_residual": lambda: linear.int8_matmul_gate_residual(
        *quantize.quantize_block(meta(BATCH, TOKENS, FFN)),
        *weights(WIDTH, FFN),
        residual=meta(BATCH, TOKENS, WIDTH),
        gate=meta(BATCH, 1, WIDTH),
    ),
    "rms_norm_rope": lambda: rms_norm.rms_norm_rope(
        meta(BATCH, TOKENS, WIDTH), meta(WIDTH), meta(1, TOKENS, 1, 64, 2, 2, dtype=torch.float32), heads=40, eps=1e-6
    ),
    "rms_norm_silu_pad": lambda: rms_norm_silu.rms_norm_silu_pad(
        meta(BATCH, 2, 720, 1280, 384).movedim(-1, 1), meta(384), meta(BATCH, 2, 720, 1280, 384).movedim(-1, 1)
    ),
    "layer_norm_modulate_quantize": lambda: layer_norm.layer_norm_modulate_quantize(
        meta(BATCH, TOKENS, WIDTH), *(meta(BATCH, 1, WIDTH) for _ in range(2)), eps=1e-6, by="block"
    ),
    "sparse_linear_attention": lambda: triton_sla.sparse_linear_attention(
        *(meta(BATCH, TOKENS, 40, 128) for _ in range(3)), meta(128, 128), meta(128), topk=0.1
    ),
    "sage_sparse_linear_attention": lambda: sage.sage_sparse_linear_attention(
        *(meta(BATCH, TOKENS, 40, 128) for _ in range(3)), meta(128, 128), meta(128), topk=0.1, pv="fp8"
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_launches_on_large_tensors(launches, case):
    """Grids are within CUDA's limits, and integers that count elements of more than 2^31 are not passed as lengths."""
    LARGE[case]()
    assert launches
    largest = 0
    for grid, arguments in launches:
        limits = (2**31 - 1, 65535, 65535)[: len(grid)]
        assert all(0 < size <= limit for size, limit in zip(grid, limits, strict=True)), grid
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        assert tensors and all(value.device.type == "meta" for value in tensors)
        largest = max(largest, *(value.numel() for value in tensors))
        # Any other number is a length, a count of blocks or the stride of one dimension. Only a batch's stride may need
        # 64 bits, and Triton passes such a one as 64 bits.
        lengths = [value for value in arguments if type(value) is int and value >= 2**31]
        assert all(any(value in tensor.stride() for tensor in tensors) for value in lengths), lengths
    assert largest > 2**31
    assert block_count(TOKENS, 64) * 40 * BATCH < 2**31  # the map's rows, which kernels count in 32 bits

"""The registered operators: what they accept, how torch.compile sees them, and that both backends compute the same."""

import inspect
from collections import Counter

import pytest
import torch
from td_pack import kernels
from td_pack.kernels import counting, use_backend
from td_pack.kernels.attention.reference import sage, sla
from td_pack.kernels.int8 import reference as int8
from td_pack.kernels.norm import reference as norm
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.tensors import draw, turns


def qkv(length: int = 200, heads: int = 2, width: int = 128) -> tuple[torch.Tensor, ...]:
    return tuple(draw(3, 1, length, heads, width, seed=length))


def projection(width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(width, width, seed=1) / 12, draw(width, seed=2)


def layer(n: int = 140, k: int = 200, by: str = "block") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, scales by block or, `by` row, for each channel, and bias."""
    return (*int8.QUANTIZERS[by](draw(n, k, seed=1) / k**0.5), draw(n, seed=2))


def quantized(m: int = 130, k: int = 200, by: str = "block") -> tuple[torch.Tensor, torch.Tensor]:
    return int8.QUANTIZERS[by](draw(2, m, k))


def modulation(frames: int = 1) -> tuple[torch.Tensor, ...]:
    return draw(2, 9, 200), *draw(2, 2, frames, 200, seed=1)


def epilogue() -> tuple[torch.Tensor, torch.Tensor]:
    """Residual and gate."""
    return draw(2, 130, 140, seed=3), draw(2, 1, 140, seed=4)


# Operator and its arguments.
CASES = {
    "sparse_linear_attention": lambda: (*qkv(), *projection(), 0.4),
    "sparse_linear_attention without projection": lambda: (*qkv(65, width=64), None, None, 1.0),
    "sparse_linear_attention, sage": lambda: (*qkv(), *projection(), 0.4, "fp16"),
    "int8_quantize": lambda: (draw(2, 130, 200),),
    "int8_quantize by group": lambda: (draw(2, 130, 200), "group"),
    "int8_quantize by row": lambda: (draw(2, 130, 200), "row"),
    "int8_linear": lambda: (draw(2, 130, 200), *layer()),
    "int8_linear by row": lambda: (draw(2, 130, 200), *layer(), "row"),
    "int8_linear by group": lambda: (draw(2, 130, 200), *layer(), "group"),
    "int8_linear by channel": lambda: (draw(2, 130, 200), *layer(by="row"), "row"),
    "int8_matmul": lambda: (*quantized(), *layer(), torch.float32),
    "int8_matmul by row": lambda: (*quantized(by="row"), *layer()[:2], None, torch.float32),
    "int8_matmul_gelu_quantize": lambda: (*quantized(), *layer(), torch.float32),
    "int8_matmul_gelu_quantize by channel": lambda: (*quantized(by="row"), *layer(by="row"), torch.float32, "row"),
    "int8_matmul_gelu_quantize by group": lambda: (*quantized(by="group"), *layer(), torch.float32, "group"),
    "int8_matmul_gate_residual": lambda: (*quantized(), *layer(), *epilogue()),
    "int8_matmul_gate_residual by group": lambda: (*quantized(by="group"), *layer(), *epilogue()),
    "rms_norm_rope": lambda: (draw(2, 9, 256), draw(256), turns(9, 128), 2),
    "layer_norm_modulate": modulation,
    "layer_norm_modulate by frame": lambda: modulation(3),
    "layer_norm_modulate_quantize": modulation,
    "layer_norm_modulate_quantize by group": lambda: (*modulation(3), 1e-6, "group"),
    "layer_norm_modulate_quantize by row": lambda: (*modulation(3), 1e-6, "row"),
    "rms_norm_silu_pad": lambda: (draw(2, 96, 2, 3, 5), draw(96), draw(2, 96, 2, 3, 5, seed=1)),
    "rms_norm_silu_pad without past": lambda: (draw(2, 1, 3, 5, 96).movedim(-1, 1), draw(96), None),
}
EVERY = pytest.mark.parametrize("case", CASES)


def name(case: str) -> str:
    return case.replace(",", " ").split()[0]


def operator(case: str):
    return getattr(kernels, name(case))


def definition(case: str, *given) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """The reference's function of the operator's name, whose arguments have the same order; what an operator leaves out
    is `defaults`."""
    defaults = {"eps": 1e-6, "by": "block", "activation": "block"}
    if name(case) == "int8_quantize":
        return int8.QUANTIZERS[(*given, "block")[1]](given[0])
    function = next(getattr(each, name(case)) for each in (sla, int8, norm) if hasattr(each, name(case)))
    if case.endswith("sage"):
        function = sage.sage_sparse_linear_attention
    names = list(inspect.signature(function).parameters)
    bound = dict(zip(names[: len(given)], given, strict=True))
    return function(**{key: value for key, value in defaults.items() if key in names} | bound)


def parts(result) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def same(a, b) -> bool:
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(parts(a), parts(b), strict=True))


def test_every_operator_has_cases():
    registered = {
        entry for entry in kernels.__all__ if isinstance(getattr(kernels, entry), torch._library.custom_ops.CustomOpDef)
    }
    assert registered == {name(case) for case in CASES} | {"nf4_dequantize"}  # which test_nf4.py has


@EVERY
def test_registration(case):
    torch.library.opcheck(operator(case), CASES[case]())


@EVERY
def test_it_is_the_definition_on_torch(case):
    """Which backend runs without a kernel: test_dispatch.py; `batched` against the definition: test_sla.py."""
    with use_backend("torch"):
        assert same(operator(case)(*CASES[case]()), definition(case, *CASES[case]()))


@pytest.mark.skipif(
    DEVICE.type == "cuda", reason="the kernels take float32 in the interpreter alone; test_triton_* run on GPUs"
)
@EVERY
def test_it_reaches_its_kernel(case):
    """The same call on both backends, the kernels interpreted."""
    run = operator(case)
    with use_backend("torch"):
        expected = run(*CASES[case]())
    with use_backend("triton"):
        actual = run(*CASES[case]())
    if "quantize" in case:
        # Sums in another order may move a value over the edge of a code.
        assert [x.shape for x in actual] == [x.shape for x in expected]
        torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=0)
        difference = (actual[0].int() - expected[0].int()).abs()
        assert difference.max() <= 1 and difference.float().mean() < 1e-3
    else:
        # Float32 sums in another order.
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_new_length_does_not_recompile():
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    weight, bias = layer(256, 256)[:2], draw(256)

    def block(q, k, v, x, freqs):
        x = kernels.rms_norm_rope(x, bias, freqs, 2)
        codes, scales = kernels.int8_quantize(x.flatten(2))
        return kernels.sparse_linear_attention(q, k, v, None, None, 0.4), kernels.int8_matmul(
            codes, scales, *weight, None, torch.float32
        )

    compiled = torch.compile(block, dynamic=True, fullgraph=True, backend=backend)
    for length in (200, 300, 333):
        x, freqs = draw(1, length, 256), turns(length, 128)
        assert same(compiled(*qkv(length), x, freqs), block(*qkv(length), x, freqs))
    assert len(graphs) == 1


def attention(change):
    q, k, v = change(*qkv())
    return kernels.sparse_linear_attention(q, k, v, None, None, 0.4)


REFUSED = {
    "rank": (lambda: attention(lambda q, k, v: (q[0], k, v)), "must be"),
    "heads": (lambda: attention(lambda q, k, v: (q, k[:, :, :1], v[:, :, :1])), "equal B, H and D"),
    "keys and values": (lambda: attention(lambda q, k, v: (q, k, v[:, 1:])), "must be"),
    "no tokens": (lambda: attention(lambda q, k, v: (q[:, :0], k, v)), "at least one token"),
    "dtypes": (lambda: attention(lambda q, k, v: (q.half(), k, v)), "share dtype"),
    "topk": (lambda: kernels.sparse_linear_attention(*qkv(), None, None, 0.0), "topk is 0.0"),
    "pv": (lambda: kernels.sparse_linear_attention(*qkv(), None, None, 0.4, "int4"), "pv is 'int4'"),
    "weight": (lambda: kernels.int8_linear(draw(4, 100), *layer()), "int8 weight"),
    "weight in float": (lambda: kernels.int8_linear(draw(4, 200), draw(140, 200), *layer()[1:]), "int8 weight"),
    "activation": (lambda: kernels.int8_linear(draw(4, 200), *layer(), "tile"), "'tile': choose block, group or row"),
    "by": (lambda: kernels.int8_quantize(draw(4, 200), "tile"), "'tile': choose block, group or row"),
    "vector": (lambda: kernels.int8_quantize(draw(4)), "is needed"),
    "scales": (lambda: kernels.int8_matmul(quantized()[0], draw(3), *layer(), torch.float32), "scales by block"),
    "codes": (lambda: kernels.int8_matmul(draw(2, 130, 200), quantized()[1], *layer(), torch.float32), "int8 codes"),
    "activation by group, weight by channel": (
        lambda: kernels.int8_matmul(*quantized(by="group"), *layer(by="row"), torch.float32),
        "needs an activation by row, not by group",
    ),
    "by of a linear by channel": (lambda: kernels.int8_linear(draw(4, 200), *layer(by="row")), "by row, not by block"),
    "residual": (
        lambda: kernels.int8_matmul_gate_residual(*quantized(), *layer(), draw(2, 130, 139), draw(2, 1, 139)),
        "residual",
    ),
    "gate": (
        lambda: kernels.int8_matmul_gate_residual(*quantized(), *layer(), draw(2, 130, 140), draw(2, 2, 140)),
        "gate",
    ),
    "freqs": (lambda: kernels.rms_norm_rope(draw(1, 9, 256), draw(256), turns(8, 128), 2), "freqs"),
    "norm weight": (lambda: kernels.rms_norm_rope(draw(1, 9, 256), draw(128), turns(9, 128), 2), "freqs"),
    "heads of a norm": (lambda: kernels.rms_norm_rope(draw(1, 9, 256), draw(256), turns(9, 128), 3), "heads"),
    "modulation": (lambda: kernels.layer_norm_modulate(draw(1, 9, 200), *draw(2, 2, 1, 200)), "shift and scale"),
    "past": (lambda: kernels.rms_norm_silu_pad(draw(1, 8, 2, 3, 5), draw(8), draw(1, 8, 1, 3, 5)), "past"),
    "past not dense": (
        lambda: kernels.rms_norm_silu_pad(draw(1, 8, 2, 3, 5), draw(8), draw(1, 8, 3, 3, 5)[:, :, :2]),
        "past",
    ),
    "frames": (lambda: kernels.layer_norm_modulate(draw(1, 2, 200), *draw(2, 1, 3, 200)), "shift and scale"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_inputs_that_do_not_fit_are_refused(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("rows", [(0, 200), (2, 0, 200)])
def test_nothing_gives_nothing(rows):
    x, weights = draw(*rows), layer()
    codes, scales = kernels.int8_quantize(x)
    assert codes.shape == x.shape
    assert kernels.int8_linear(x, *weights).shape == (*rows[:-1], 140)
    assert kernels.int8_matmul(codes, scales, *weights, torch.float16).dtype == torch.float16
    assert kernels.int8_matmul_gelu_quantize(codes, scales, *weights, torch.float16)[0].shape == (*rows[:-1], 140)
    if len(rows) == 3:
        assert kernels.layer_norm_modulate_quantize(x, *draw(2, 2, 1, 200))[0].shape == x.shape
        assert kernels.rms_norm_rope(x, draw(200), turns(1, 200)[:, :0], 1).shape == (2, 0, 1, 200)


def test_calls_are_counted_also_in_a_compiled_graph():
    torch.compiler.reset()

    def block(q, k, v, x):
        codes, scales = kernels.int8_quantize(x)
        kernels.int8_matmul(codes, scales, *layer(), torch.float32)
        kernels.int8_linear(x, *layer())
        return kernels.sparse_linear_attention(q, k, v, None, None, 0.4)

    compiled = torch.compile(block, backend="eager")
    counter = Counter()
    with counting(counter):
        block(*qkv(), draw(2, 130, 200))
        compiled(*qkv(), draw(2, 130, 200))
        compiled(*qkv(), draw(2, 130, 200))
    compiled(*qkv(), draw(2, 130, 200))
    assert counter == {"sparse attention": 3, "int8 linear": 6}

"""The registered operators: what they accept, how torch.compile sees them, and who runs them."""

from collections import Counter

import pytest
import torch
from td_pack.kernels import (
    NoBackendError,
    backends,
    block_map,
    counting,
    int8_linear,
    quantize_block,
    sparse_linear_attention,
    use_backend,
)
from td_pack.kernels.backends import choose, triton_unavailable
from td_pack.kernels.reference import sla
from td_pack.tests.support.interpreter import DEVICE


def qkv(length: int = 200, heads: int = 2, width: int = 128, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(1, length, heads, width, generator=generator).to(dtype) for _ in range(3)]


def projection(width: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(width, width, generator=generator) / 12, torch.randn(width, generator=generator)


CASES = [
    (block_map, lambda: (*qkv()[:2], 0.4)),
    (sparse_linear_attention, lambda: (*qkv(), *projection(), 0.4)),
    (sparse_linear_attention, lambda: (*qkv(65, width=64), None, None, 1.0)),
]


@pytest.mark.parametrize(
    "operator,arguments", CASES, ids=["block_map", "sparse_linear_attention", "without projection"]
)
def test_registration(operator, arguments):
    torch.library.opcheck(operator, arguments())
    compiled = torch.compile(lambda *given: operator(*given), fullgraph=True, backend="eager")
    assert torch.equal(compiled(*arguments()), operator(*arguments()))


def test_a_new_length_does_not_recompile():
    torch.compiler.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda q, k, v: sparse_linear_attention(q, k, v, None, None, 0.4), dynamic=True, backend=backend
    )
    for length in (200, 300, 333):
        compiled(*qkv(length))
    assert len(graphs) == 1


def test_it_is_the_reference_where_no_kernel_runs():
    q, k, v = qkv()
    expected = sla.sparse_linear_attention(q, k, v, *projection(), topk=0.4)
    assert torch.equal(sparse_linear_attention(q, k, v, *projection(), 0.4), expected)
    assert torch.equal(block_map(q, k, 0.4), sla.block_map(q, k, 0.4).int())


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda q, k, v: (q[0], k, v), "must be"),
        (lambda q, k, v: (q, k[:, :, :1], v[:, :, :1]), "equal B, H and D"),
        (lambda q, k, v: (q, k, v[:, 1:]), "must be"),
        (lambda q, k, v: (q[:, :0], k, v), "at least one token"),
        (lambda q, k, v: (q.half(), k, v), "share dtype"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        sparse_linear_attention(*change(*qkv()), None, None, 0.4)


def test_calls_are_counted_also_in_a_compiled_graph():
    torch.compiler.reset()
    compiled = torch.compile(lambda q, k, v: sparse_linear_attention(q, k, v, None, None, 0.4), backend="eager")
    counter = Counter()
    with counting(counter):
        sparse_linear_attention(*qkv(), None, None, 0.4)
        compiled(*qkv())
        compiled(*qkv())
    compiled(*qkv())
    assert counter == {"sparse attention": 3}


def test_the_choice_says_why_each_faster_backend_does_not_run():
    choice = choose(torch.zeros(1), None)
    assert choice.backend == "torch" and "does not reach a cpu device" in str(choice)
    assert triton_unavailable(torch.device("cpu")) == "it does not reach a cpu device"


def test_a_demanded_backend_runs_or_gives_its_reason():
    with use_backend("torch"):
        assert choose(torch.zeros(1), None).backend == "torch"
    with (
        use_backend("triton"),
        pytest.raises(NoBackendError, match=r"triton cannot run this request: its kernels have head widths"),
    ):
        sparse_linear_attention(*qkv(width=32), None, None, 0.4)
    assert choose(torch.zeros(1), None).backend == "torch"


@pytest.mark.parametrize(
    "operator,arguments",
    [
        (block_map, lambda: (*qkv()[:2], 0.4)),
        (sparse_linear_attention, lambda: (*qkv(), *projection(), 0.4)),
        (int8_linear, lambda: (qkv(130, heads=1)[0][:, :, 0], *quantize_block(projection()[0]), projection()[1])),
    ],
    ids=["block_map", "sparse_linear_attention", "int8_linear"],
)
def test_the_operators_reach_their_kernels(operator, arguments):
    """The same call on both backends (the kernels interpreted where there is no GPU)."""
    given = [value.to(DEVICE) if isinstance(value, torch.Tensor) else value for value in arguments()]
    with use_backend("torch"):
        expected = operator(*given)
    with use_backend("triton"):
        actual = operator(*given)
    # Float32 sums in another order; the codes of the map are exact.
    assert torch.allclose(actual.float(), expected.float(), rtol=1e-4, atol=1e-5)


def test_the_self_test_passes_on_working_kernels_and_fails_on_broken_ones(monkeypatch):
    assert backends._self_test(DEVICE) is None
    right = backends.load

    def wrong(operator, module, backend):
        run = right(operator, module, backend)
        return (
            run
            if backend == "torch" or operator != "int8_linear"
            else lambda *given, **options: 1.1 * run(*given, **options)
        )

    monkeypatch.setattr(backends, "load", wrong)
    assert backends._self_test(DEVICE).startswith("its self-test of int8 is off by")

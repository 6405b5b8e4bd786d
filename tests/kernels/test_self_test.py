"""The self-test passes on the backends as they are and finds what a broken one computes."""

import pytest
import torch
from td_pack.kernels import OPERATORS, self_test
from td_pack.kernels.attention.triton import block_selection
from td_pack.kernels.attention.triton import sage as sage_kernel
from td_pack.kernels.attention.triton import sla as sla_kernel
from td_pack.tests.support.interpreter import DEVICE
from td_pack.tests.support.kernels import row

TESTED = sorted({(operator.folder, operator.self_test or operator.folder) for operator in OPERATORS.values()})


def fault(backend: str, folder: str, cases: str = "") -> str | None:
    return self_test.fault(row(backend), folder, cases or folder, DEVICE)


@pytest.mark.parametrize(
    "backend, folder, cases",
    [(backend, *each) for backend in ("triton", "torch") for each in TESTED] + [("dequantized", "int8", "int8")],
)
def test_it_passes_on_working_kernels(backend, folder, cases):
    assert fault(backend, folder, cases) is None


@pytest.mark.parametrize("name", ["sparse attention", "sage attention", "int8 linear", "norm and rope"])
def test_it_finds_a_broken_kernel(monkeypatch, name):
    operator = OPERATORS[name]
    module = row("triton").load(operator.folder)
    run = getattr(module, operator.function)
    monkeypatch.setattr(module, operator.function, lambda **given: 1.1 * run(**given))
    found = fault("triton", operator.folder, operator.self_test)
    assert found.startswith(f"its self-test of {operator.function} is off by")


class TestAnUpsideDownBlockMap:
    """It lists the key blocks of the lowest scores instead of the highest."""

    @pytest.mark.parametrize("cases", ["attention", "sage"])
    def test_is_found_by_itself(self, monkeypatch, cases):
        top = block_selection._top_blocks
        monkeypatch.setattr(block_selection, "_top_blocks", lambda scores, selected: top(-scores, selected))
        assert fault("triton", "attention", cases).startswith("its self-test of block_map differs in")

    @pytest.mark.parametrize("kernel, cases", [(sla_kernel, "attention"), (sage_kernel, "sage")])
    def test_is_found_inside_attention(self, monkeypatch, kernel, cases):
        listed = block_selection.block_map_pooled
        monkeypatch.setattr(kernel, "block_map_pooled", lambda q, k_pooled, *rest: listed(q, -k_pooled, *rest))
        assert "sparse_linear_attention is off by" in fault("triton", "attention", cases)


def test_the_order_of_the_blocks_does_not_depend_on_rounding():
    """The scores that the self-test's map cuts between are far apart, beside TF32's relative 1e-3."""
    from td_pack.kernels.attention import self_test_cases
    from td_pack.kernels.attention.format import BLOCK_K, BLOCK_Q, selected_blocks
    from td_pack.kernels.attention.reference import sla

    case = next(self_test_cases.attention(torch.Generator().manual_seed(0), torch.device("cpu")))
    q, k = case.arguments["q"], case.arguments["k"]
    scores = sla._pool(q, BLOCK_Q) @ sla._pool(k, BLOCK_K).transpose(-1, -2)
    ordered = scores.sort(-1, descending=True).values
    selected = selected_blocks(k.shape[1], case.arguments["topk"])
    assert 1 < selected < scores.shape[-1]
    assert ((ordered[..., selected - 1] - ordered[..., selected]) / scores.abs().amax(-1)).min() > 0.02

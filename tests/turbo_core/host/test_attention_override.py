"""Another attention, set for a model by a stock node: dense blocks run it, and where sparse blocks cannot it is
said."""

import importlib
from collections import Counter

import pytest
import torch
from comfy_extras import nodes_model_advanced
from td_pack.tests.support.experts import sample, stock_sample, text
from td_pack.tests.support.models import stock_model
from td_pack.turbo_core.host.attention_patch import with_attention
from td_pack.turbo_core.host.load import load_model
from td_pack.turbo_core.host.status import report

TOKENS = 2 * 4 * 4
SAID = "cannot take effect in the %d of 2 blocks"


@pytest.fixture
def sparse(sparse_path):
    return load_model(sparse_path)


def overridden(model, calls: Counter):
    """A clone whose attention is ComfyUI's, counted in `calls` by block and kind, and halved."""

    def override(attention, q, k, v, *args, transformer_options, **kwargs):
        kind = "self" if q.shape[1] == k.shape[1] == TOKENS else "cross"
        calls[transformer_options["block_index"], kind] += 1
        return attention(q, k, v, *args, transformer_options=transformer_options, **kwargs) * 0.5

    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


def ours(model) -> torch.Tensor:
    return sample(model, text(), steps=2)


def stock(model) -> torch.Tensor:
    return stock_sample(model, text(), 2)


def warnings(caplog, blocks: int) -> int:
    return sum(SAID % blocks in message for message in caplog.messages)


@pytest.mark.parametrize("dense_blocks,blocks", [("", 2), ("0", 1)])
def test_sparse_blocks_say_once_a_run_that_they_cannot_use_it(sparse, caplog, dense_blocks, blocks):
    calls = Counter()
    model = overridden(with_attention(sparse, "auto", 0.1, dense_blocks, False), calls)
    ours(model)
    assert warnings(caplog, blocks) == 1
    assert calls == Counter({(0, "cross"): 2, (1, "cross"): 2} | ({(0, "self"): 2} if dense_blocks else {}))
    told = report(model)
    assert f"in {2 * blocks} sparse attention calls the attention that another node sets" in told
    assert "attention override not used" not in told
    ours(model)
    assert warnings(caplog, blocks) == 2
    ours(sparse)
    assert warnings(caplog, blocks) == 2 and "another node" not in report(sparse)


def test_under_a_stock_sampler_it_is_said_once_a_load(sparse, caplog):
    model = overridden(sparse, Counter())
    stock(model)
    stock(model)
    assert warnings(caplog, 2) == 1
    assert "in 8 sparse attention calls the attention that another node sets" in report()


def test_dense_blocks_run_it_as_comfyui_s_own_model_does(t2v, folder, caplog):
    ran = []
    for model in (t2v, stock_model(11)):
        calls = Counter()
        changed, plain = stock(overridden(model, calls)), stock(model)
        assert (changed - plain).norm() > 0.01 * plain.norm()
        ran.append(calls)
    assert ran[0] == ran[1] == Counter({(block, kind): 2 for block in (0, 1) for kind in ("self", "cross")})
    assert "another node" not in caplog.text + report(t2v)


def stock_nodes() -> dict:
    """ComfyUI's nodes that set a model's attention, as far as this one has them, each as a function of a model."""
    found = {}
    backend = getattr(nodes_model_advanced, "ModelAttentionBackend", None)
    if backend is not None:
        found["Model Attention Backend"] = lambda model: backend().patch(model, "pytorch attention")[0]
    try:
        block_sparse = importlib.import_module("comfy_extras.nodes_sparse_attention").BlockSparseAttention
        selection = {"selection": "sla", "keep_percent": 10.0}
        found["Model Sparse Attention"] = lambda model: block_sparse.execute(model, selection, 0.0, 1.0, "", 0)[0]
    except ImportError:
        pass
    return found


@pytest.mark.parametrize("node", ["Model Attention Backend", "Model Sparse Attention"])
def test_the_real_nodes_are_noticed(node, sparse, caplog):
    if node not in stock_nodes():
        pytest.skip(f"this ComfyUI has no {node} node")
    ours(stock_nodes()[node](sparse))
    assert warnings(caplog, 2) == 1

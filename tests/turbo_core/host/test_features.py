"""The pack on hosts that lack what it can do without."""

from types import SimpleNamespace

import comfy.ops
import pytest
import torch
from server import PromptServer
from td_pack.turbo_core.host import features


def test_a_plain_layer_has_no_marks():
    layer = torch.nn.Linear(1, 1)
    assert not features.is_streamed(layer) and not features.is_cast(layer)
    layer._v, layer.comfy_force_cast_weights = object(), True
    assert features.is_streamed(layer) and features.is_cast(layer)


@pytest.mark.parametrize("context", ["the host's", "ours"])
def test_a_layer_s_weight_is_fetched_and_given_back(context, monkeypatch):
    """With the context manager of ComfyUI from 0.34 on, which 0.30 lacks, and without one; also if what runs in it fails."""
    if context == "ours":
        monkeypatch.delattr(comfy.ops, "CastBiasWeightContext", raising=False)
    elif not hasattr(comfy.ops, "CastBiasWeightContext"):
        pytest.skip("this ComfyUI has no CastBiasWeightContext")
    given_back = []
    uncast = comfy.ops.uncast_bias_weight
    monkeypatch.setattr(
        comfy.ops, "uncast_bias_weight", lambda layer, *state: given_back.append(layer) or uncast(layer, *state)
    )
    layer = comfy.ops.manual_cast.Linear(2, 3, dtype=torch.bfloat16)
    layer.weight.data.fill_(1.5)
    layer.bias.data.fill_(0.5)
    x = torch.ones(1, 2)
    with features.fetched(layer, x) as (weight, bias):
        assert not given_back and weight.dtype == bias.dtype == torch.float32
        assert torch.equal(torch.nn.functional.linear(x, weight, bias), torch.full((1, 3), 3.5))
    with pytest.raises(ZeroDivisionError), features.fetched(layer, x):
        1 / 0  # noqa: B018
    assert given_back == [layer, layer]


@pytest.mark.parametrize("offered", [True, False])
def test_prompts_pass_through_a_handler_where_the_server_offers_it(offered, monkeypatch):
    handlers = []
    server = SimpleNamespace(add_on_prompt_handler=handlers.append) if offered else SimpleNamespace()
    monkeypatch.setattr(PromptServer, "instance", server, raising=False)
    assert features.before_each_prompt(dict) is offered
    assert handlers == [dict] * offered


def test_nodes_are_replaced_only_where_both_halves_are_there():
    api, io = SimpleNamespace(node_replacement="register"), SimpleNamespace(NodeReplace=None)
    assert features.node_replacements(api, io) == "register"
    assert features.node_replacements(SimpleNamespace(), io) is None
    assert features.node_replacements(api, SimpleNamespace()) is None

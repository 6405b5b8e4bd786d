"""Optional parts of ComfyUI: with them and without."""

from types import SimpleNamespace

import comfy.ops
import pytest
import torch
from server import PromptServer
from td_pack.turbo_core.host import features


@pytest.mark.parametrize("context", ["the host's", "ours"])
def test_a_layer_s_weight_is_fetched_and_given_back(context, monkeypatch):
    """With the context manager of ComfyUI from 0.34 on, which 0.30 lacks, and without one; also if what runs in it
    fails."""
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
        raise ZeroDivisionError
    assert given_back == [layer, layer]


def test_what_a_version_lacks_is_done_without(monkeypatch):
    """Where ComfyUI has it: tests/nodes/test_replacements.py, on the server."""
    monkeypatch.setattr(PromptServer, "instance", SimpleNamespace(), raising=False)
    assert features.before_each_prompt(dict) is False
    assert features.node_replacements(SimpleNamespace(), SimpleNamespace(NodeReplace=None)) is None
    assert features.node_replacements(SimpleNamespace(node_replacement="registry"), SimpleNamespace()) is None

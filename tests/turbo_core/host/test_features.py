"""The pack on hosts that lack what it can do without."""

from types import SimpleNamespace

import pytest
import torch
from server import PromptServer
from td_pack.turbo_core.host import features


def test_a_plain_layer_has_no_marks():
    layer = torch.nn.Linear(1, 1)
    assert not features.is_streamed(layer) and not features.is_cast(layer)
    layer._v, layer.comfy_force_cast_weights = object(), True
    assert features.is_streamed(layer) and features.is_cast(layer)


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

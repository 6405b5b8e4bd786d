"""The values in a prompt that ComfyUI takes for links without a check.

ComfyUI refuses a link to a missing node or output, but does not check three kinds of values: a literal in an input that
has no widget (MODEL, IMAGE, ...), a list in `{"__value__": list}`, and a list in an input that the node does not have.
The first raises an error inside the node. With the others, a link to a missing node ends ComfyUI's worker thread, which
then runs no prompt until ComfyUI is restarted. `with_plain_links` turns them into values that ComfyUI refuses or
ignores, for the nodes of this pack and for those that they replace."""

from collections.abc import Iterable, Mapping
from typing import Any

import execution
from comfy_api.latest import io

from ..turbo_core.host.features import before_each_prompt, nodes_of
from .replacements import OLD

_WRAPPED = "__value__"  # ComfyUI's key for a list that is a value and no link

Inputs = Mapping[str, io.Input | None]


def known_inputs(nodes: Iterable[type[io.ComfyNode]]) -> dict[str, Inputs]:
    """The inputs by node id and name: of these nodes, and of the old nodes that they or stock nodes replace (None for
    an input of a stock node)."""
    schemas = [node.GET_SCHEMA() for node in nodes]
    known: dict[str, Inputs] = {schema.node_id: {each.id: each for each in schema.inputs} for schema in schemas}
    for old in OLD:
        inputs = {old_name: known.get(old.new, {}).get(new_name) for old_name, new_name in old.names.items()}
        known |= dict.fromkeys(old.ids, inputs)
    return known


def with_plain_links(request: dict[str, Any], known: Mapping[str, Inputs]) -> dict[str, Any]:
    """The request, changed in place: each value that should be a link and is not is wrapped in a list of one element,
    which ComfyUI refuses ("must be a length-2 list of [node_id, slot_index]"), and lists in inputs that the node does
    not have are dropped."""
    of_others = {old_id for old in OLD for old_id in old.ids}.intersection(execution.nodes.NODE_CLASS_MAPPINGS)
    for node in nodes_of(request):
        kind, inputs = node["class_type"], node["inputs"]
        if kind not in known or kind in of_others:
            continue
        links = {name for name, value in inputs.items() if isinstance(value, list)}
        for name in links - known[kind].keys():
            del inputs[name]
        for name in known[kind].keys() & inputs.keys() - links:
            if _is_refused(known[kind][name], inputs[name]):
                inputs[name] = [inputs[name]]
    return request


def _is_refused(given: io.Input | None, value: object) -> bool:
    """Whether a value, which is not a list, must be refused for an input."""
    if given is None or isinstance(given, io.WidgetInput):
        return isinstance(value, dict) and isinstance(value.get(_WRAPPED), list)
    return not (given.optional and value is None)


def register(nodes: Iterable[type[io.ComfyNode]]) -> None:
    """Applies `with_plain_links` to every prompt, where the host has a handler for that."""
    known = known_inputs(nodes)
    before_each_prompt(lambda request: with_plain_links(request, known))

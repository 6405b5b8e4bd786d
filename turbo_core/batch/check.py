"""Prompts checked against every server's node types, without running them."""

from collections.abc import Collection, Mapping

from . import schema
from .node_info import NodeInfos, Spec
from .table import RowFault
from .text import brief
from .workflow import Prompt, is_link, label, specs

_MOST_NAMED = 4  # servers in one message


class Checker:
    """The faults of prompts that differ from one base in a few nodes: the rest is checked once.

    `infos` are the node types of each server by its name; servers that agree are checked as one."""

    def __init__(self, base: Prompt, infos: Mapping[str, NodeInfos]):
        self._groups: list[tuple[NodeInfos, list[str]]] = []
        for server, known in infos.items():
            for other, servers in self._groups:
                if other == known:
                    servers.append(server)
                    break
            else:
                self._groups.append((known, [server]))
        self._count = len(infos)
        self._base = {key: self._node(base, key) for key in base}
        self._unsaved = self._by_server([(servers, _saves_nothing(base, known)) for known, servers in self._groups])

    def faults(self, prompt: Prompt, changed: Collection[str]) -> list[str]:
        """Every fault that a server's own validation would find, without the nodes' own checks; `changed` are the ids
        of the nodes whose inputs differ from the base."""
        found = [fault for key in prompt for fault in (self._node(prompt, key) if key in changed else self._base[key])]
        return found + self._unsaved

    def lacking(self, node_id: str, class_type: str, name: str, value: str) -> list[str]:
        """The servers that do not offer that file for an input."""
        return [
            server
            for known, servers in self._groups
            for server in servers
            if value not in (_choices(known, class_type, name) or ())
        ]

    def _node(self, prompt: Prompt, key: str) -> list[str]:
        return self._by_server([(servers, check_node(prompt, key, known)) for known, servers in self._groups])

    def _by_server(self, found: list[tuple[list[str], list[str]]]) -> list[str]:
        """Each fault once, with the servers that have it if not all do."""
        by_fault: dict[str, list[str]] = {}
        for servers, faults in found:
            for fault in faults:
                by_fault.setdefault(fault, []).extend(servers)
        return [
            fault if len(servers) == self._count else f"{fault} (on {named(servers)})"
            for fault, servers in by_fault.items()
        ]


def named(servers: list[str]) -> str:
    """The names of the first `_MOST_NAMED` servers, and how many more there are."""
    more = f" and {len(servers) - _MOST_NAMED} more" if len(servers) > _MOST_NAMED else ""
    return ", ".join(servers[:_MOST_NAMED]) + more


def _choices(infos: NodeInfos, class_type: str, name: str) -> list[object] | None:
    spec = infos[class_type].inputs.get(name) if class_type in infos else None
    return spec.choices if spec else None


def _saves_nothing(prompt: Prompt, infos: NodeInfos) -> list[str]:
    saves = any(infos[node["class_type"]].saves for node in prompt.values() if node["class_type"] in infos)
    return [] if saves else ["the workflow saves nothing: add a node such as Save Video"]


def check_node(prompt: Prompt, key: str, infos: NodeInfos) -> list[str]:
    """The faults of one node of a prompt on a server with these node types."""
    node, place = prompt[key], label(prompt, key)
    if node["class_type"] not in infos:
        return [f"node {place}: the server has no {brief(node['class_type'], 80)}; install its pack"]
    faults = []
    for name, spec in specs(node, infos).items():
        if name not in node["inputs"]:
            if spec.required:
                faults.append(f"node {place} lacks its input {name!r}")
        elif wrong := _check_input(prompt, node["inputs"][name], spec, infos):
            faults.append(f"{name} of node {place} {wrong}")
    return faults


def _check_input(prompt: Prompt, value: object, spec: Spec, infos: NodeInfos) -> str | None:
    if not is_link(value):
        try:
            return schema.fault(schema.convert(value, spec), spec)
        except RowFault as error:
            return str(error)
    if value[0] not in prompt:
        return f"is linked to node {brief(value[0], 60)}, which the workflow does not have"
    source = infos.get(prompt[value[0]]["class_type"])
    if source is None:
        return None  # that node has a fault already
    if not 0 <= value[1] < len(source.outputs):
        return f"is linked to output {value[1]} of node {label(prompt, value[0])}, which has {len(source.outputs)}"
    given, taken = source.outputs[value[1]], spec.kind
    if given is None or any("*" in t or t.startswith("COMFY_MATCHTYPE") for t in (given, taken)):
        return None
    if not {t.strip() for t in given.split(",")} & {t.strip() for t in taken.split(",")}:
        return f"takes {brief(taken, 80)} and node {label(prompt, value[0])} gives {brief(given, 80)}"
    return None

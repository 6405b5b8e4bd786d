"""An API-format workflow: which inputs a column of the table sets, and a copy with another attention node."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import TurboError
from .files import parse_json, read_text
from .node_info import NodeInfos, Spec
from .table import RowFault
from .text import brief

KNOWN = ("prompt", "negative", "image", "seed", "width", "height", "length", "topk")
_ROLE = {"prompt": "positive", "negative": "negative"}
_SEEDS = ("seed", "noise_seed")
_TEXTS = ("text", "prompt")
_BESIDE = {"width": "height", "height": "width"}  # a width without a height is not the width of a picture
_LOADER, ATTENTION = "TurboDiffusionLoader", "TurboDiffusionSLA"

Target = tuple[str, str]  # node id, input name


Prompt = dict[str, dict[str, Any]]  # nodes in API format by id, each with class_type and inputs


def read_workflow(path: Path) -> Prompt:
    """A workflow in API format. Raises TurboError for anything else."""
    try:
        prompt = parse_json(read_text(path))
    except TurboError:
        raise
    except ValueError as error:
        raise TurboError(f"{path} is not JSON ({error}); export the workflow again.") from error
    if isinstance(prompt, dict) and isinstance(prompt.get("nodes"), list):
        raise TurboError(
            f"{path.name} is a workflow of the editor; save it there with Export (API) and give that file."
        )
    if not is_prompt(prompt):
        raise TurboError(f"{path.name} is not a workflow in API format: each node needs class_type and inputs.")
    return prompt


def is_prompt(value: object) -> TypeGuard[Prompt]:
    """Whether it is a workflow in API format with at least one node."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
            for node in value.values()
        )
    )


def is_link(value: object) -> TypeGuard[tuple[str, int]]:
    """Whether an input's value is [node id, output index]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


class Workflow:
    """A prompt with the server's node types, and the names that rows may use."""

    def __init__(self, prompt: Prompt, infos: NodeInfos):
        self.prompt, self.infos = prompt, infos
        self._targets: dict[str, list[Target] | RowFault] = {}

    def label(self, node_id: str) -> str:
        """`6 (Size and length)`: a node as messages name it."""
        return label(self.prompt, node_id)

    def specs(self, node_id: str) -> dict[str, Spec]:
        """The inputs of a node by name; none if the server lacks its type."""
        return specs(self.prompt[node_id], self.infos)

    def with_attention(self) -> "Workflow":
        """This workflow with a TurboDiffusionSLA after every TurboDiffusionLoader, unless it has one: the node that
        takes `topk`."""
        kinds = {node["class_type"] for node in self.prompt.values()}
        if ATTENTION in kinds or _LOADER not in kinds:
            return self
        prompt = copy.deepcopy(self.prompt)
        loaders = [key for key, node in prompt.items() if node["class_type"] == _LOADER]
        for node in prompt.values():
            for name, value in node["inputs"].items():
                if is_link(value) and value[0] in loaders:
                    node["inputs"][name] = [f"{value[0]}-topk", 0]
        for key in loaders:
            inputs = {"model": [key, 0], "mode": "auto", "topk": 0.1, "dense_blocks": "", "allow_untrained": False}
            prompt[f"{key}-topk"] = {
                "class_type": ATTENTION,
                "inputs": inputs,
                "_meta": {"title": "top-k of the batch"},
            }
        return Workflow(prompt, self.infos)

    def targets(self, name: str) -> list[Target]:
        """The inputs that a column sets. Raises RowFault where there is none, or where the name is ambiguous."""
        if name not in self._targets:
            try:
                self._targets[name] = self._known(name) if name in KNOWN else self._named(name)
            except RowFault as error:
                self._targets[name] = error
        found = self._targets[name]
        if isinstance(found, RowFault):
            raise found
        return found

    def _named(self, name: str) -> list[Target]:
        found = []
        for key, node in self.prompt.items():
            for owner in dict.fromkeys((key, _title(node), node["class_type"])):
                field = name[len(owner) + 1 :]
                if name.startswith(f"{owner}.") and field in self.specs(key).keys() | node["inputs"].keys():
                    found.append((key, field))
        exact = [target for target in found if name.startswith(f"{target[0]}.")]
        found = exact or found
        if not found:
            raise RowFault(
                f"no input is called {brief(repr(name))}; use {', '.join(KNOWN)}, or NODE.INPUT with the node's id "
                "or title"
            )
        if len(found) > 1:
            raise self._ambiguous(name, found)
        return found

    def _known(self, name: str) -> list[Target]:
        if name in _ROLE:
            return [self._text(name)]
        if name == "image":
            found = [(key, field) for key in self.prompt for field, spec in self.specs(key).items() if spec.is_image]
        else:
            fields, beside = _SEEDS if name == "seed" else (name,), _BESIDE.get(name, name)
            nodes = [
                (key, node["inputs"]) for key, node in self.prompt.items() if name == "seed" or beside in node["inputs"]
            ]
            found = [(key, field) for key, inputs in nodes for field in fields if field in inputs]
        found = list(dict.fromkeys(map(self._source, found)))
        if not found:
            raise RowFault(f"this workflow has no input for {name!r}; name one as NODE.INPUT")
        values = {json.dumps(self.prompt[key]["inputs"].get(field)) for key, field in found}
        # Inputs with equal values are set together, and so are the seeds of several samplers.
        if len(values) > 1 and name != "seed" or len(found) > 1 and name == "image":
            raise self._ambiguous(name, found)
        return found

    def _source(self, target: Target) -> Target:
        """The input to write for a linked value: that of the primitive node it comes from. A link to a value that
        another node computes is overwritten."""
        passed = []
        while target not in passed:  # primitive nodes may be linked in a circle
            passed.append(target)
            value = self.prompt[target[0]]["inputs"].get(target[1])
            if is_link(value) and "value" in self.prompt.get(value[0], {"inputs": {}})["inputs"]:
                target = value[0], "value"
        return target

    def _text(self, name: str) -> Target:
        """The text that reaches the samplers' positive or negative conditioning."""
        role = _ROLE[name]
        mine, other = self._texts(role), self._texts("negative" if role == "positive" else "positive")
        if role == "negative":
            mine = [target for target in mine if target not in other]
        if not mine:
            raise RowFault(
                f"this workflow has no text that reaches a sampler's {role} input alone; name it as NODE.INPUT"
            )
        if len(mine) > 1:
            raise self._ambiguous(name, mine)
        return mine[0]

    def _texts(self, role: str) -> list[Target]:
        found: list[Target] = []
        seen: set[tuple[str, str]] = set()
        consumed = {value[0] for key in self.prompt for value in self._conditionings(key).values() if is_link(value)}
        # A sampler or guider is the last of its chain: no node takes its output as a conditioning.
        ends = [key for key in self.prompt if key not in consumed and is_link(self.prompt[key]["inputs"].get(role))]
        ends += [
            key
            for key, node in self.prompt.items()
            if role == "positive" and is_link(node["inputs"].get("conditioning")) and key not in consumed
        ]
        queue = [(key, role if role in self.prompt[key]["inputs"] else "conditioning") for key in ends]
        while queue:
            key, field = queue.pop(0)
            link = self.prompt[key]["inputs"][field]
            if not is_link(link) or link[0] not in self.prompt or (link[0], role) in seen:
                continue
            seen.add((link[0], role))
            source, inputs = link[0], self.prompt[link[0]]["inputs"]
            if text := next((name for name in _TEXTS if name in inputs), None):
                found.append(self._source((source, text)))
            elif role in inputs:
                queue.append((source, role))
            else:
                queue += [(source, name) for name in self._conditionings(source)]
        return list(dict.fromkeys(found))

    def _conditionings(self, key: str) -> dict[str, object]:
        """The node's given inputs that take a conditioning."""
        inputs = self.prompt[key]["inputs"]
        return {
            name: inputs[name]
            for name, spec in self.specs(key).items()
            if spec.kind == "CONDITIONING" and name in inputs
        }

    def _ambiguous(self, name: str, targets: list[Target]) -> RowFault:
        places = ", ".join(
            f"{key}.{field} ({_title(self.prompt[key]) or self.prompt[key]['class_type']})"
            for key, field in targets[:8]
        )
        more = f" and {len(targets) - 8} more" if len(targets) > 8 else ""
        return RowFault(f"{name!r} could be {places}{more}; write which")


def specs(node: Mapping[str, Any], infos: NodeInfos) -> dict[str, Spec]:
    """The inputs of a node by name; none if its type is not among `infos`."""
    info = infos.get(node["class_type"])
    return info.inputs_of(node["inputs"]) if info else {}


def label(prompt: Prompt, node_id: str) -> str:
    """`6 (Size and length)`: a node as messages name it."""
    node = prompt[node_id]
    return f"{brief(node_id, 60)} ({brief(_title(node) or node['class_type'], 80)})"


def _title(node: Mapping[str, Any]) -> str:
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) else ""

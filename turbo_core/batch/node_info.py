"""/object_info parsed: the inputs and outputs of node types."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from .answers import BadAnswer
from .text import brief, encodable

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a COMBO whose options bring inputs of their own
_UPLOADS = ("image_upload", "video_upload", "audio_upload")
# Types that ComfyUI replaces by the inputs that are given, so that none of them can be missing.
_EXPANDED = ("COMFY_DYNAMIC", "COMFY_AUTOGROW")
_MOST_LEVELS = 8  # of dynamic combos within each other


@dataclass(frozen=True)
class Spec:
    """One input of a node: its type (COMBO for a list of options) and what limits its value.

    `choices` is None where the options are not known here (another type, or fetched by the page)."""

    kind: str
    required: bool = True
    choices: list[Any] | None = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    is_file: bool = False  # takes a file of the server's input folder
    is_image: bool = False
    is_multiselect: bool = False
    branches: list[tuple[object, dict[str, "Spec"]]] = field(default_factory=list)  # of a dynamic combo, by its key


@dataclass(frozen=True)
class NodeInfo:
    """A node type. `outputs` are type names; None stands for an output that takes any of a list of values."""

    inputs: dict[str, Spec]
    outputs: list[str | None]
    saves: bool

    def inputs_of(self, given: Mapping[str, object]) -> dict[str, Spec]:
        """The inputs by name; a dynamic combo brings those of the option that `given` chooses, as `name.inner`."""
        if not any(spec.branches for spec in self.inputs.values()):
            return self.inputs
        found: dict[str, Spec] = {}
        _chosen(self.inputs, given, "", found)
        return found


NodeInfos = dict[str, NodeInfo]


def _chosen(specs: dict[str, Spec], given: Mapping[str, object], prefix: str, found: dict[str, Spec]) -> None:
    for name, spec in specs.items():
        found[prefix + name] = spec
        for key, inner in spec.branches:
            if key == given.get(prefix + name):
                _chosen(inner, given, f"{prefix}{name}.", found)


def parse_node_infos(answer: object, types: Collection[str]) -> NodeInfos:
    """What /object_info says of these node types; those that it lacks are left out. Raises BadAnswer."""
    if not isinstance(answer, dict):
        raise BadAnswer("/object_info does not have ComfyUI's form (it is not an object)")
    return {name: _node(name, answer[name]) for name in types if name in answer}


def _node(name: str, entry: object) -> NodeInfo:
    where = f"/object_info of {brief(name, 80)}"
    node = _object(entry, where)
    outputs = node.get("output", [])
    if not isinstance(outputs, list):
        raise BadAnswer(f"{where} does not have ComfyUI's form (output is not a list)")
    return NodeInfo(
        _inputs(_object(node.get("input", {}), where), where, 0),
        [encodable(output) if isinstance(output, str) else None for output in outputs],
        bool(node.get("output_node")),
    )


def _inputs(declared: dict[str, object], where: str, level: int) -> dict[str, Spec]:
    if level > _MOST_LEVELS:
        raise BadAnswer(f"{where} is nested too deeply")
    found = {}
    for section in ("required", "optional"):
        for name, declaration in _object(declared.get(section) or {}, where).items():
            found[encodable(name)] = _spec(declaration, section == "required", where, level)
    return found


def _spec(declaration: object, required: bool, where: str, level: int) -> Spec:
    if not isinstance(declaration, list) or not declaration or not isinstance(declaration[0], (str, list)):
        raise BadAnswer(f"{where} does not have ComfyUI's form (an input has no type)")
    given = declaration[1] if len(declaration) > 1 and isinstance(declaration[1], dict) else {}
    kind, options = declaration[0], given.get("options")
    if isinstance(kind, list):
        kind, options = "COMBO", kind
    options = options if isinstance(options, list) else []
    branches, choices = [], None
    if kind == DYNAMIC:
        for option in (_object(option, where) for option in options):
            branches.append((option.get("key"), _inputs(_object(option.get("inputs") or {}, where), where, level + 1)))
        choices = [key for key, _ in branches]
    elif kind == "COMBO" and not given.get("remote"):
        choices = [encodable(c) if isinstance(c, str) else c for c in options if isinstance(c, (str, int, float))]
    return Spec(
        encodable(kind),
        required and not kind.startswith(_EXPANDED),
        choices,
        _number(given.get("min")),
        _number(given.get("max")),
        _number(given.get("step")),
        any(bool(given.get(name)) for name in _UPLOADS),
        bool(given.get("image_upload")),
        bool(given.get("multiselect")),
        branches,
    )


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswer(f"{where} does not have ComfyUI's form (an object is missing)")
    return value


def _number(value: object) -> int | float | None:
    """The value as a limit, or None for no limit if it is not a finite number."""
    return value if isinstance(value, int) or isinstance(value, float) and math.isfinite(value) else None

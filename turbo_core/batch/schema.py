"""Converts a value to the type of a node's input, and says why the server would refuse it. Faults are one sentence
without a full stop."""

import difflib
import math

from .node_info import DYNAMIC, Spec
from .table import RowFault
from .text import brief

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NUMBERS = {"INT": "a whole number", "FLOAT": "a number"}
_COMPARED = 1000  # choices among which similar ones are looked for


def convert(value: object, spec: Spec) -> object:
    """The value as the input's type. Raises RowFault."""
    if spec.kind == "BOOLEAN":
        return _boolean(value)
    if spec.kind in _NUMBERS:
        return _number(value, spec.kind)
    if spec.kind in ("COMBO", DYNAMIC):
        return _choice(value, spec)
    if spec.kind == "STRING":
        if isinstance(value, (dict, list)):
            raise RowFault("takes a text")
        return value if isinstance(value, str) else str(value)
    if spec.kind.startswith("COMFY_") or "*" in spec.kind:
        return value
    raise RowFault(f"takes a {spec.kind} from another node, not a value")


def _boolean(value: object) -> bool:
    text = str(value).strip().lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise RowFault(f"takes true or false, not {brief(repr(value))}")


def _number(value: object, kind: str) -> int | float:
    try:
        if isinstance(value, (bool, dict, list)):
            raise ValueError
        given = value if isinstance(value, (int, float)) else str(value).strip()
        if kind == "FLOAT":
            number = float(given)
            if not math.isfinite(number):
                raise ValueError
            return number
        # An integer beyond 2**53 loses digits as a float, and a spreadsheet may write 5 as 5.0.
        if isinstance(given, str) and not given.lstrip("+-").isdigit():
            given = float(given)
        if isinstance(given, float) and given != int(given):
            raise ValueError
        return int(given)
    except (ValueError, OverflowError):
        raise RowFault(f"takes {_NUMBERS[kind]}, not {brief(repr(value))}") from None


def _choice(value: object, spec: Spec) -> object:
    choices = spec.choices
    if choices is None or spec.is_file or value in choices:
        return value
    for choice in choices:
        if str(choice) == str(value).strip():
            return choice
    return value  # `fault` reports it


def fault(value: object, spec: Spec) -> str | None:
    """What the server would refuse about a value of the right type, or None."""
    if spec.kind in _NUMBERS and isinstance(value, (int, float)):
        if spec.low is not None and value < spec.low:
            return f"is {brief(value)}, and the least is {spec.low}"
        if spec.high is not None and value > spec.high:
            return f"is {brief(value)}, and the most is {spec.high}"
    choices = spec.choices
    if choices is None or spec.is_file or value in choices or spec.is_multiselect:
        return None
    said, names = brief(repr(value)), [str(choice) for choice in choices[:_COMPARED]]
    near = difflib.get_close_matches(brief(str(value)), names, 3, 0.5)
    offered = ", ".join(brief(name, 80) for name in near or names[:8])
    if not offered:
        return f"is {said}, and the server has nothing to choose from"
    return f"is {said}, which the server does not have; {'near' if near else 'it has'}: {offered}"


def off_step(value: object, spec: Spec) -> str | None:
    """What is wrong with a whole number that the editor would not let a person choose, or None."""
    step, low = spec.step, spec.low or 0
    if spec.kind != "INT" or not isinstance(value, int) or not isinstance(step, int) or not isinstance(low, int):
        return None
    if step < 2 or (value - low) % step == 0:
        return None
    below = value - (value - low) % step
    return f"is {brief(value)}, and it goes in steps of {step}: choose {brief(below)} or {brief(below + step)}"

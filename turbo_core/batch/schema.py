"""/object_info read: what inputs a node takes, and a value made to fit one. Faults are one sentence without a full stop."""

import difflib
import math
from dataclasses import dataclass

from .table import RowFault

_UPLOADS = ("image_upload", "video_upload", "audio_upload")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_NUMBERS = {"INT": "a whole number", "FLOAT": "a number"}
_DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a COMBO whose options bring inputs of their own


@dataclass(frozen=True)
class Spec:
    """One input of a node: its type (COMBO for a list of options) and its options."""

    kind: str
    options: dict
    required: bool

    @property
    def is_file(self) -> bool:
        """Whether it takes a file of the server's input folder."""
        return any(self.options.get(name) for name in _UPLOADS)

    @property
    def choices(self) -> list | None:
        """What a COMBO offers, where that is known here."""
        if self.kind == _DYNAMIC:
            return [option.get("key") for option in self.options.get("options", [])]
        if self.kind != "COMBO" or self.options.get("remote"):
            return None
        return self.options.get("options", [])


def inputs_of(info: dict, given: dict) -> dict[str, Spec]:
    """The inputs of a node by name; a dynamic combo brings those of the option that `given` chooses, as `name.inner`."""
    found = {}
    _collect(info.get("input", {}), given, "", found)
    return found


def _collect(declared: dict, given: dict, prefix: str, found: dict) -> None:
    for section in ("required", "optional"):
        for name, (kind, *rest) in declared.get(section, {}).items():
            options = dict(rest[0]) if rest and isinstance(rest[0], dict) else {}
            if isinstance(kind, list):
                kind, options = "COMBO", options | {"options": kind}
            found[prefix + name] = Spec(kind, options, section == "required")
            if kind == _DYNAMIC:
                for option in options.get("options", []):
                    if option.get("key") == given.get(prefix + name):
                        _collect(option.get("inputs", {}), given, f"{prefix}{name}.", found)


def convert(value: object, spec: Spec) -> object:
    """The value as the input's type. Raises RowFault."""
    if spec.kind == "BOOLEAN":
        return _boolean(value)
    if spec.kind in _NUMBERS:
        return _number(value, spec.kind)
    if spec.kind in ("COMBO", _DYNAMIC):
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
    raise RowFault(f"takes true or false, not {value!r}")


def _number(value: object, kind: str) -> int | float:
    try:
        if isinstance(value, (bool, dict, list)):
            raise ValueError
        if kind == "FLOAT":
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
        # An integer beyond 2**53 loses digits as a float, and a spreadsheet may write 5 as 5.0.
        number = value if isinstance(value, int) else float(value) if isinstance(value, float) else None
        if number is None:
            text = str(value).strip()
            number = int(text) if text.lstrip("+-").isdigit() else float(text)
        if number != int(number):
            raise ValueError
        return int(number)
    except (ValueError, OverflowError):
        raise RowFault(f"takes {_NUMBERS[kind]}, not {value!r}") from None


def _choice(value: object, spec: Spec) -> object:
    choices = spec.choices
    if choices is None or spec.is_file or value in choices:
        return value
    for choice in choices:
        if str(choice) == str(value).strip():
            return choice
    return value  # `fault` names it


def fault(value: object, spec: Spec) -> str | None:
    """What the server would refuse about a value of the right type, or None."""
    if spec.kind in _NUMBERS and isinstance(value, (int, float)):
        low, high = spec.options.get("min"), spec.options.get("max")
        if low is not None and value < low:
            return f"is {value}, and the least is {low}"
        if high is not None and value > high:
            return f"is {value}, and the most is {high}"
    choices = spec.choices
    if choices is None or spec.is_file or value in choices or spec.options.get("multiselect"):
        return None
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], 3, 0.5)
    offered = near or [str(choice) for choice in choices[:8]]
    if not offered:
        return f"is {value!r}, and the server has nothing to choose from"
    return f"is {value!r}, which the server does not have; {'near' if near else 'it has'}: {', '.join(offered)}"


def off_step(value: object, spec: Spec) -> str | None:
    """What is wrong with a whole number that the editor would not let a person choose, or None."""
    step, low = spec.options.get("step", 1), spec.options.get("min", 0)
    if spec.kind != "INT" or not isinstance(step, int) or step < 2 or (value - low) % step == 0:
        return None
    below = value - (value - low) % step
    return f"is {value}, and it goes in steps of {step}: choose {below} or {below + step}"

"""Errors whose text is meant for the user: one sentence that says what is wrong and what to do."""

import math

PACK = "TurboDiffusion"
LONGEST = 2000  # characters of a message: a screen


def bounded(text: str, longest: int = LONGEST) -> str:
    """A text of at most `longest` printable characters, for names and values of any length from files: others are
    escaped, and a text that is too long loses its middle, since a message begins with what is wrong and ends with what
    to do."""
    head, tail = longest * 2 // 3, longest // 3 - 5
    if len(text) > longest:
        text = f"{text[:head]} ... {text[-tail:]}"
    shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return shown if len(shown) <= longest else f"{shown[:head]} ... {shown[-tail:]}"


class TurboError(ValueError):
    """A request that cannot be carried out as asked.

    ComfyUI's page puts module and name of the class before the text. These say whose error it is instead of the path
    of a file."""

    __module__ = PACK
    __qualname__ = "Error"

    def __init_subclass__(cls) -> None:
        cls.__module__ = PACK

    def __init__(self, text: str):
        super().__init__(bounded(text))


class CheckpointError(TurboError):
    """A model file that cannot be used."""


def check_finite(name: str, value: float, usual: str) -> None:
    """Raises TurboError for an input that is NaN or infinite; `usual` is what to give instead. ComfyUI's range check
    lets NaN pass, and does not see a value that arrives on a link."""
    if not math.isfinite(value):
        raise TurboError(f"{name} is {value}: give a finite number, usually {usual}.")

"""Which prompt runs now, for what is done in several nodes of one."""

from collections.abc import Iterable

from comfy_execution.utils import get_executing_context

from ..record import BEFORE, Before


def prompt_id() -> str | None:
    """The id of the prompt that executes this code, None outside of one."""
    context = get_executing_context()
    return None if context is None else context.prompt_id


def with_seconds(conditioning: list, phase: str, seconds: float) -> list:
    """A CONDITIONING that tells the run it goes to how long it took to make."""
    before = Before(phase, seconds, prompt_id())
    return [[context, options | {BEFORE: before}] for context, options in conditioning]


def seconds_before(phases: Iterable[Before]) -> dict[str, float]:
    """Seconds by phase of what was done in this prompt; equal phases are added up."""
    seconds: dict[str, float] = {}
    for each in set(phases):
        if each.prompt == prompt_id():
            seconds[each.phase] = seconds.get(each.phase, 0.0) + each.seconds
    return seconds

"""Which prompt runs now, for what is done in several nodes of one."""

from collections.abc import Iterable

from comfy_execution.utils import get_executing_context

from ..record import Before


def prompt_id() -> str | None:
    """The id of the prompt that executes this code, None outside of one."""
    context = get_executing_context()
    return None if context is None else context.prompt_id


def seconds_before(phases: Iterable[Before]) -> dict[str, float]:
    """Seconds by phase of what was done in this prompt; equal phases are added up."""
    seconds: dict[str, float] = {}
    for each in set(phases):
        if each.prompt == prompt_id():
            seconds[each.phase] = seconds.get(each.phase, 0.0) + each.seconds
    return seconds

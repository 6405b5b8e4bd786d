"""The prompt that is executing, and the seconds that its nodes pass on to the record of a run."""

from collections.abc import Iterable

from comfy_execution.utils import get_executing_context

from ..record import BEFORE, Before
from .conditioning import Conditioning


def prompt_id() -> str | None:
    """The id of the prompt that executes this code, None outside of one."""
    context = get_executing_context()
    return None if context is None else context.prompt_id


def node_id() -> str | None:
    """The id of the node that executes this code, None outside of a prompt."""
    context = get_executing_context()
    return None if context is None else context.node_id


def with_seconds(conditioning: Conditioning, phase: str, seconds: float) -> Conditioning:
    """A copy of a CONDITIONING that carries the seconds it took to make, for the record of the run that uses it."""
    before = Before(phase, seconds, prompt_id())
    return [[context, options | {BEFORE: before}] for context, options in conditioning]


def seconds_before(phases: Iterable[Before]) -> dict[str, float]:
    """Seconds by phase of the work done for this prompt; work of the same phase is summed."""
    seconds: dict[str, float] = {}
    for each in set(phases):
        if each.prompt == prompt_id():
            seconds[each.phase] = seconds.get(each.phase, 0.0) + each.seconds
    return seconds

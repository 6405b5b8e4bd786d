"""Schemas of what a ComfyUI server answers: each answer is parsed here once, and later code relies on its fields."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from .text import brief, encodable


class BadAnswer(Exception):
    """The server's answer is not one of ComfyUI; the message names the request."""

    def __init__(self, message: str):
        super().__init__(brief(message, 400))


def _clean(value: object) -> object:
    return encodable(value) if isinstance(value, str) else value


def _queued_id(entry: object) -> object:
    """A queue entry is [number, prompt id, prompt, ...]."""
    if isinstance(entry, list) and len(entry) > 1:
        return entry[1]
    raise ValueError("a queue entry has no id")


def _none_as_empty(value: object) -> object:
    return value or {}


Text = Annotated[str, BeforeValidator(_clean)]


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Queue(_Answer):
    """GET /queue: the ids of the prompts that run and wait."""

    queue_running: list[Annotated[str, BeforeValidator(_queued_id)]]
    queue_pending: list[Annotated[str, BeforeValidator(_queued_id)]]


class File(_Answer):
    """A saved file, as /view takes it."""

    filename: str
    subfolder: str = ""
    type: str = "output"


class Failure(_Answer):
    """The data of `execution_error`."""

    node_id: Text | None = None
    node_type: Text | None = None
    exception_message: Text
    exception_type: Text = ""
    traceback: list[Text] = []


class _Status(_Answer):
    messages: list[list[Any]] = []


class HistoryEntry(_Answer):
    """An entry of GET /history. `outputs` are by node and kind; their files are valid File objects."""

    outputs: dict[str, dict[str, Any]]
    status: _Status | None = None
    error: Failure | None = None


class Queued(_Answer):
    """The answer of POST /prompt with status 200."""

    prompt_id: str


class InputError(_Answer):
    """One fault of a node in `node_errors`."""

    type: Text = ""
    message: Text = ""
    details: Text = ""


class NodeErrors(_Answer):
    """The faults of one node."""

    errors: list[InputError] = []


class Rejection(_Answer):
    """The answer of POST /prompt with status 400."""

    error: dict[str, Any]
    node_errors: Annotated[dict[str, NodeErrors], BeforeValidator(_none_as_empty)] = {}


class Uploaded(_Answer):
    """The answer of POST /upload/image."""

    name: Text
    subfolder: Text = ""


class _Envelope(_Answer):
    type: str
    data: Any = None


class _Executing(_Answer):
    node: Text | None


class _Cached(_Answer):
    nodes: list[Text]


class _Progress(_Answer):
    node: Text | None = None
    value: float
    max: float


_EVENTS: dict[str, type[_Answer]] = {
    "executing": _Executing,
    "execution_cached": _Cached,
    "progress": _Progress,
    "execution_error": Failure,
}

Model = TypeVar("Model", bound=BaseModel)


def decode(body: bytes | str, what: str) -> Any:
    """The JSON of an answer. Raises BadAnswer; `what` names the answer in the message."""
    try:
        return json.loads(body)
    except RecursionError:
        raise BadAnswer(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise BadAnswer(f"{what} is not JSON ({error})") from None


def parse(model: type[Model], value: object, what: str) -> Model:
    """The decoded JSON as that schema. Raises BadAnswer."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise BadAnswer(f"{what} does not have ComfyUI's form ({brief(place, 80)}: {first['msg']})") from None


def parse_event(text: str, prompt_id: str) -> tuple[str, dict[str, Any]] | None:
    """Kind and data of a websocket message, or None if it is not about that prompt. Raises BadAnswer."""
    envelope = parse(_Envelope, decode(text, "a websocket message"), "a websocket message")
    if not isinstance(envelope.data, dict) or envelope.data.get("prompt_id") != prompt_id:
        return None
    return envelope.type, _event_data(envelope.type, envelope.data)


def _event_data(kind: str, data: dict[str, Any]) -> dict[str, Any]:
    model = _EVENTS.get(kind)
    return data | parse(model, data, f"the event {kind}").model_dump() if model else data


def parse_history(value: object, prompt_id: str) -> HistoryEntry | None:
    """The entry of a prompt, or None if it is not listed. Raises BadAnswer."""
    if not isinstance(value, Mapping):
        raise BadAnswer("/history does not have ComfyUI's form (it is not an object)")
    if prompt_id not in value:
        return None
    entry = parse(HistoryEntry, value[prompt_id], "/history")
    for item in saved_items(entry.outputs):
        parse(File, item, "a file in /history")
    for message in entry.status.messages if entry.status else ():
        if message[:1] == ["execution_error"] and len(message) > 1:
            entry.error = parse(Failure, message[1], "execution_error in /history")
    return entry


def saved_items(outputs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything in the outputs that names a file."""
    values = [value for output in outputs.values() for value in output.values() if isinstance(value, list)]
    return [item for value in values for item in value if isinstance(item, dict) and "filename" in item]

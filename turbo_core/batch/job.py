"""A job: a resolved prompt, the files it uploads, and the id that is their hash; and one attempt at it."""

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

UPLOADS = "batch"  # the subfolder of a server's input folder
_ID_DIGITS = 20
_MODEL_SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin", ".gguf")
_SIZES = ("width", "height", "length", "batch_size")


@dataclass(frozen=True)
class Job:
    """One prompt to be run once. `uploads` maps the names that the prompt gives to LoadImage to local paths; they carry
    the content's hash, so the id covers it."""

    id: str
    row: int
    prompt: dict[str, dict[str, Any]]
    settings: dict[str, object] = field(default_factory=dict)
    uploads: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a worker needs of one attempt at a job; `files` are the uploads' contents by name."""

    job: str
    attempt: int
    prompt: dict[str, dict[str, Any]]
    files: dict[str, bytes] = field(default_factory=dict)
    timeout: float | None = None

    @property
    def prompt_id(self) -> str:
        """The same for the same attempt, so that a batch that was killed finds its prompts on the servers again."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"turbodiffusion-batch:{self.job}:{self.attempt}"))

    @property
    def folder(self) -> str:
        """Where in the server's output folder the files go: no two attempts, and no two servers on one disk, share a
        name."""
        return f"batch/{self.job}-{self.attempt}"


def job_id(prompt: dict[str, dict[str, Any]]) -> str:
    """The hash of all that decides a prompt's result; titles do not."""
    nodes = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in prompt.items()}
    text = json.dumps(nodes, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]


def placement(prompt: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """(models, models and size): jobs that share them run faster one after the other on one worker."""
    values = [(name, value) for node in prompt.values() for name, value in node["inputs"].items()]
    models = sorted(
        {value for _, value in values if isinstance(value, str) and value.lower().endswith(_MODEL_SUFFIXES)}
    )
    sizes = sorted({(name, value) for name, value in values if name in _SIZES and isinstance(value, (int, float))})
    return json.dumps(models), json.dumps([models, sizes])

"""Reads model files from disk before they are needed: the first expert's while the prompt is encoded, the low expert's
while the high expert still computes.

Only the page cache is filled. From there ComfyUI's own loading stages them (pinned buffers, streams, dynamic VRAM), on
the thread that samples, which is the only one its bookkeeping is made for; pinned copies made ahead would also hold the
memory twice."""

from pathlib import Path

import comfy.model_management
import comfy.model_patcher

from ..checkpoint.shards import files_of
from ..errors import CheckpointError
from ..read_ahead import ReadAhead, room, total_size


def read_first_ahead(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Begins to read the file of a model that was just loaded and that a run will begin with, as far as memory allows.
    The model holds the reading as `ahead`; the run ends it, if it has not ended by itself."""
    files = _files(patcher)
    if files:
        patcher.model.ahead = ReadAhead(files, room(total_size(files), 0))


def read_ahead(high: comfy.model_patcher.ModelPatcher, low: comfy.model_patcher.ModelPatcher) -> ReadAhead | None:
    """Begins to read the low expert's file, as far as memory allows beside what the high expert still reads from its
    own. None if there is nothing to read."""
    if low.model is high.model or not bytes_from_file(low):
        return None
    files = _files(low)
    return ReadAhead(files, room(total_size(files), bytes_from_file(high))) if files else None


def _files(patcher: comfy.model_patcher.ModelPatcher) -> list[Path]:
    """The files of a model; none if a shard is missing, which loading the model reports."""
    try:
        return files_of(patcher.model.source)
    except CheckpointError:
        return []


def bytes_from_file(patcher: comfy.model_patcher.ModelPatcher) -> int:
    """Bytes of a model that a step reads from its mapped file: all of them on a CPU, else those neither on the device
    nor in pinned host memory."""
    size = patcher.model_size()
    if comfy.model_management.is_device_cpu(patcher.load_device):
        return size
    held = patcher.loaded_size() + (patcher.loaded_ram_size() if patcher.is_dynamic() else 0)
    return max(0, size - held)

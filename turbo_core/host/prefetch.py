"""The low expert's file is read from disk while the high expert still computes.

Only the page cache is filled. From there ComfyUI's own loading stages them (pinned buffers, streams, dynamic VRAM), on
the thread that samples, which is the only one its bookkeeping is made for; pinned copies made ahead would also hold the
memory twice."""

import comfy.model_management
import comfy.model_patcher

from ..checkpoint.shards import files_of
from ..errors import CheckpointError
from ..read_ahead import ReadAhead, room, total_size


def read_ahead(high: comfy.model_patcher.ModelPatcher, low: comfy.model_patcher.ModelPatcher) -> ReadAhead | None:
    """Begins to read the low expert's file, as far as memory allows beside what the high expert still reads from its
    own. None if there is nothing to read."""
    if low.model is high.model or not bytes_from_file(low):
        return None
    try:
        files = files_of(low.model.source)
    except CheckpointError:  # a shard is missing; loading the expert reports it
        return None
    return ReadAhead(files, room(total_size(files), bytes_from_file(high)))


def bytes_from_file(patcher: comfy.model_patcher.ModelPatcher) -> int:
    """Bytes of a model that a step reads from its mapped file: all of them on a CPU, else those neither on the device
    nor in pinned host memory."""
    size = patcher.model_size()
    if comfy.model_management.is_device_cpu(patcher.load_device):
        return size
    held = patcher.loaded_size() + (patcher.loaded_ram_size() if patcher.is_dynamic() else 0)
    return max(0, size - held)

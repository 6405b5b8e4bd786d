"""The coming expert's weights are read from the disk while the running one still computes.

Only the page cache is filled. From there ComfyUI's own loading stages them (pinned buffers, streams, dynamic VRAM), on the
thread that samples, which is the only one its bookkeeping is made for; pinned copies made ahead would also hold the memory
twice."""

import comfy.model_management
import comfy.model_patcher

from ..checkpoint.shards import files_of
from ..errors import CheckpointError
from ..read_ahead import ReadAhead, room, total_size


def read_ahead(running: comfy.model_patcher.ModelPatcher, coming: comfy.model_patcher.ModelPatcher) -> ReadAhead | None:
    """Begins to read the file of the expert `coming` as far as memory allows beside what `running` still reads from its own.
    None if there is nothing to read."""
    if coming.model is running.model or not bytes_from_file(coming):
        return None
    try:
        files = files_of(coming.model.source)
    except CheckpointError:  # a part is gone: whoever needs it will say so
        return None
    return ReadAhead(files, room(total_size(files), bytes_from_file(running)))


def bytes_from_file(patcher: comfy.model_patcher.ModelPatcher) -> int:
    """How much of a model a step reads from its mapped file: all of it on a CPU, else what is neither on the device nor in the
    host's pinned buffers."""
    size = patcher.model_size()
    if comfy.model_management.is_device_cpu(patcher.load_device):
        return size
    held = patcher.loaded_size() + (patcher.loaded_ram_size() if patcher.is_dynamic() else 0)
    return max(0, size - held)
